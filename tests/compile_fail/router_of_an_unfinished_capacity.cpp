// expect: sluice: capacity policy needs `void serve\(
#include <sluice/gate/linear.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

using namespace sluice;

struct my_capacity {};

void use(softmax_rule<float> rule) { token_choice_router router{linear_gate<float>{4, 2}, rule, no_noise<float>{}, my_capacity{}}; }
