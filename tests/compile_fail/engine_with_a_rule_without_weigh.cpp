// expect: sluice: choice rule needs .void weigh
#include <sluice/gate/linear.hpp>
#include <sluice/router/token_choice.hpp>

using namespace sluice;

struct my_rule {
  index_t top_k() const { return 1; }
  void score(const choice_row<float>&, float*) const {}
  index_t choose(const choice_row<float>&, index_t*) const { return 0; }
  void backward(const choice_row<float>&, const weighed_experts<float>&, float*) const {}
};

token_choice_router router{linear_gate<float>(4, 3), my_rule{}};
