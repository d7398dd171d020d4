// expect: sluice: choice rule needs .void weigh
#include <sluice/router/choice_rule.hpp>

using sluice::index_t;

struct my_rule {
  index_t top_k() const { return 1; }
  void score(const float*, index_t, float*) const {}
  index_t choose(const float*, const float*, float*, index_t, index_t, index_t*) const { return 0; }
  void backward(const float*, const float*, index_t, const index_t*, index_t, const float*, const float*, float*) const {}
  float priority(const float*, index_t) const { return 0; }
};

static_assert(sluice::explain_choice_rule<my_rule, float>());
