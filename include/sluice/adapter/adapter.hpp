/// The whole room: adapters, mixtures of them, and the frozen layers beside which they stand.
#pragma once

#include <sluice/adapter/adapted.hpp>
#include <sluice/adapter/low_rank.hpp>
#include <sluice/adapter/merge.hpp>
