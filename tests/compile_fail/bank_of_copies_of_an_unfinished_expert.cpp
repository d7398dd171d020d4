// expect: sluice: expert needs `index_t outputs\(\) const`
#include <sluice/expert/bank.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { expert_bank bank(2, expert_without_outputs{}); }
