// expect: sluice: expert needs `index_t outputs\(\) const`
#include <sluice/core/concepts.hpp>

#include "unfinished_parts.hpp"

static_assert(sluice::explain_expert<expert_without_outputs>());
