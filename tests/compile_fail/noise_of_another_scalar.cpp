// expect: sluice: noise needs a member type `tape`, `void apply
#include <sluice/router/tokens_choose/top_k.hpp>

using namespace sluice;

token_choice_router router{linear_gate<float>(4, 3), softmax_rule<float>({.top_k = 2}), gaussian_noise<double>(1)};
