// expect: sluice: banks of one expert_union need the same scalar
#include <sluice/expert/bank.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>

using namespace sluice;

void use() { expert_union both{expert_bank<identity_expert<float>>{1, 4}, expert_bank<identity_expert<double>>{1, 4}}; }
