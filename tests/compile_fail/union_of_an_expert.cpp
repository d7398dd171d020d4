// expect: sluice: expert bank needs `index_t experts\(\) const`
#include <sluice/expert/bank.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>

using namespace sluice;

void use() { expert_union both{expert_bank<identity_expert<float>>{1, 4}, identity_expert<float>{4}}; }
