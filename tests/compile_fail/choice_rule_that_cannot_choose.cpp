// expect: sluice: choice rule needs .index_t choose
#include <sluice/router/choice_rule.hpp>

using namespace sluice;

struct my_rule {
  index_t top_k() const { return 1; }
  void score(const choice_row<float>&, float*) const {}
  index_t choose(const float*, index_t, index_t*) const { return 0; }
  void weigh(const choice_row<float>&, const expert_rows&, float*) const {}
  void backward(const choice_row<float>&, const weighed_experts<float>&, float*) const {}
};

static_assert(explain_choice_rule<my_rule, float>());
