/// The executor that runs every task in the calling thread, in order; it is also what a call without an executor uses.
/// An exception of a body leaves parallel_for at once.
#pragma once

#include <sluice/core/executor.hpp>
