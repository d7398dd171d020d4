// expect: sluice: gate needs .void backward
#include <sluice/router/tokens_choose/top_k.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

token_choice_router router{gate_without_backward{}, softmax_rule<float>({.top_k = 2})};
