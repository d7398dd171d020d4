// expect: sluice: expert needs `index_t outputs\(\) const`
#include <sluice/expert/bank.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { expert_bank<expert_without_outputs> bank(2); }
