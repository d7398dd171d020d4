// expect: sluice: auxiliary loss needs .scalar operator

#include <sluice/router/tokens_choose/top_k.hpp>

struct my_loss {
  template <typename Signals, typename Plan, typename Context, typename Gradients>
  void operator()(const Signals&, const Plan&, const Context&, Gradients&) const {}
};

static_assert(sluice::explain_loss<my_loss, sluice::top_k_router<float>>());
