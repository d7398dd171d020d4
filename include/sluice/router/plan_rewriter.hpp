/// What routers share that write the plan of another router anew: that plan, and both ends of the work on it.
///
///   route      begin(t.own, p, E', rows at most);   p.add(...) for every token;   end(t.own, p)
///   backward   t.down.weight [rows of own], made by room_for_gradients(t);   ...;   pass_back(x, context, t, dx)
///
///   class my_router : public plan_rewriter<Inner>         router/overflow.hpp is one
///
/// Invalid tokens, refused assignments and input scales are the inner plan's. T = 0 is fine. Losses cannot look into
/// such a router's tape, which has no scores of its own.
#pragma once

#include <sluice/core/sparse_plan.hpp>
#include <sluice/router/router_decorator.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class plan_rewriter : public router_decorator<Inner> {
  using base = router_decorator<Inner>;
  static_assert(std::same_as<typename Inner::plan, sparse_plan<typename Inner::scalar>>,
                "sluice: a router that writes another one's plan anew needs a sparse_plan");

public:
  using typename base::plan;
  using typename base::scalar;

  struct tape {
    typename Inner::tape inner;
    plan own;  ///< the inner router's
    typename plan::gradient down;
  };

  explicit plan_rewriter(Inner inner) : base(std::move(inner)) {}

  void after_step(const routing_statistics& statistics, tape& t) { base::after_step(statistics, t.inner); }

protected:
  static void begin(const plan& own, plan& p, index_t experts, index_t most_rows) {
    p.reset(own.tokens(), experts, most_rows);
    p.reserve_dropped(own.most_rows());
    if (own.has_input_scale()) p.use_input_scale();
    for (const index_t token : own.invalid_tokens()) p.mark_invalid(token);
  }
  static void end(const plan& own, plan& p) {
    for (const auto& refused : own.dropped()) p.add_dropped(refused);
    p.finish();
  }

  static void room_for_gradients(tape& t) {
    t.down.weight.reserve(t.own.most_rows());
    t.down.weight.resize(t.own.size());
    t.down.input_scale.resize(t.own.has_input_scale() ? t.own.size() : 0);
  }
  void pass_back(tokens_in<scalar> x, const routing_context<scalar>& context, tape& t, tokens_out<scalar> dx) {
    if constexpr (requires { t.inner.dseen.zero_like(t.inner.seen); }) t.inner.dseen.zero_like(t.inner.seen);
    this->inner().backward(x, context, t.own, t.down, t.inner, dx);
  }
};

}  // namespace sluice::inline SLUICE_ISA
