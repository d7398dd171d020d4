// expect: sluice: expert bank needs `index_t experts\(\) const`
#include <sluice/expert/normalized_bank.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { normalized_bank bank{bank_without_experts{}, rms_norm<float>{4}}; }
