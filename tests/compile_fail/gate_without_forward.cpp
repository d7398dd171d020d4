// expect: sluice: gate needs .void forward
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

static_assert(explain_gate<gate_without_forward>());
