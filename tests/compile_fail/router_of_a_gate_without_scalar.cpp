// expect: sluice: gate needs a floating-point member type `scalar`
#include <sluice/gate/linear.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

using namespace sluice;

struct my_gate {
  struct tape {};
  index_t inputs() const { return 4; }
  index_t experts() const { return 2; }
};

void use(softmax_rule<float> rule) { token_choice_router router{my_gate{}, rule}; }
