// expect: sluice: an executor is referred to and not kept: give it a name that outlives its use
#include <sluice/core/context.hpp>
#include <sluice/exec/thread_pool.hpp>

const sluice::routing_context<float> context{.executor = sluice::thread_pool(2)};
