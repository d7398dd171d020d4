/// All of the room: mixtures of experts as statisticians fit them.
#pragma once

#include <sluice/statistics/mixture_posterior.hpp>
#include <sluice/statistics/multinomial_mixture.hpp>
#include <sluice/statistics/regression_mixture.hpp>
