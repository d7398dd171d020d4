/// The executor that runs every task in the calling thread; it is also what a call without an executor uses.
#pragma once

#include <sluice/core/executor.hpp>
