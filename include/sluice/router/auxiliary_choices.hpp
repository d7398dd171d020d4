/// The last choices of a token become auxiliary ones, for banks that use them in another way than as experts.
///
///   the plan of another router over E experts, ranks 0 .. k - 1 of a token;  main choices: ranks below M, as they are
///   auxiliary ones, expert e of rank M and up:  number E + e of 2 E,  weight w / (sum of the token's auxiliary w)
///   da[i] = (g[i] - sum over the auxiliary of w' g) / sum        w' the new weights, g their gradients
///
/// A bank of 2 E experts reads the second half as it likes: compressed_bank (expert/derived/compressed_bank.hpp) mixes
/// vectors of theirs. A token with no more than M choices has no auxiliary ones. Choices, ties, NaN, padding and T = 0
/// are the inner router's; a sum of zero leaves auxiliary weights zero. Losses cannot look into this router's tape; put
/// none on the layer. He, Gu, Ke 2025, "Efficiently Editing Mixture-of-Experts Models with Compressed Experts",
/// arXiv:2503.00634.
#pragma once

#include <sluice/core/sparse_plan.hpp>
#include <sluice/router/router_decorator.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class auxiliary_choices_router : public router_decorator<Inner> {
  using base = router_decorator<Inner>;
  static_assert(std::same_as<typename Inner::plan, sparse_plan<typename Inner::scalar>>,
                "sluice: auxiliary_choices_router renumbers assignments of a sparse_plan");

public:
  using typename base::plan;
  using typename base::scalar;

  struct tape {
    typename Inner::tape inner;
    plan own;  ///< the inner router's
    typename plan::gradient down;
  };

  /// Throws std::invalid_argument unless there is a main choice at least.
  auxiliary_choices_router(Inner inner, index_t main_choices) : base(std::move(inner)), main_(main_choices) {
    if (main_ < 1) throw_invalid("a token needs a main choice or more, not ", main_);
  }

  index_t experts() const noexcept { return 2 * base::experts(); }
  index_t main_choices() const noexcept { return main_; }

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const {
    this->inner().route(x, context, t.own, t.inner);
    const plan& own = t.own;
    p.reset(x.rows(), experts(), own.most_rows());
    p.reserve_dropped(own.most_rows());
    if (own.has_input_scale()) p.use_input_scale();
    for (const index_t token : own.invalid_tokens()) p.mark_invalid(token);
    for (index_t token = 0; token < x.rows(); ++token) {
      const scalar sum = auxiliary_sum(own, token);
      for (const index_t i : own.of_token(token))
        if (own.rank(i) < main_)
          p.add(token, own.expert(i), own.weight(i), own.rank(i), own.input_scale(i));
        else
          p.add(token, base::experts() + own.expert(i), sum == scalar(0) ? scalar(0) : own.weight(i) / sum, own.rank(i),
                own.input_scale(i));
    }
    for (const auto& refused : own.dropped()) p.add_dropped(refused);
    p.finish();
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) {
    const plan& own = t.own;
    t.down.weight.reserve(own.most_rows());
    t.down.weight.resize(own.size());
    t.down.input_scale.resize(own.has_input_scale() ? own.size() : 0);
    for (index_t token = 0; token < x.rows(); ++token) {
      const auto mine = own.of_token(token), theirs = p.of_token(token);
      const scalar sum = auxiliary_sum(own, token);
      scalar inner = 0;
      for (std::size_t j = 0; j < mine.size(); ++j)
        if (own.rank(mine[j]) >= main_) inner += p.weight(theirs[j]) * dplan.weight[theirs[j]];
      for (std::size_t j = 0; j < mine.size(); ++j) {
        const scalar g = dplan.weight[theirs[j]];
        const bool is_main = own.rank(mine[j]) < main_;
        t.down.weight[mine[j]] = is_main ? g : sum == scalar(0) ? scalar(0) : (g - inner) / sum;
        if (own.has_input_scale()) t.down.input_scale[mine[j]] = dplan.input_scale[theirs[j]];
      }
    }
    if constexpr (requires { t.inner.dseen.zero_like(t.inner.seen); }) t.inner.dseen.zero_like(t.inner.seen);
    this->inner().backward(x, context, own, t.down, t.inner, dx);
  }

  void after_step(const routing_statistics& statistics, tape& t) { base::after_step(statistics, t.inner); }

private:
  scalar auxiliary_sum(const plan& own, index_t token) const {
    scalar sum = 0;
    for (const index_t i : own.of_token(token))
      if (own.rank(i) >= main_) sum += own.weight(i);
    return sum;
  }

  index_t main_;
};

}  // namespace sluice::inline SLUICE_ISA
