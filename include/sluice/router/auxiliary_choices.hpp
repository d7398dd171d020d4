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

#include <sluice/router/plan_rewriter.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class auxiliary_choices_router : public plan_rewriter<Inner> {
  using base = plan_rewriter<Inner>;

public:
  using typename base::plan;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument unless there is a main choice at least.
  auxiliary_choices_router(Inner inner, index_t main_choices) : base(std::move(inner)), main_(main_choices) {
    if (main_ < 1) throw_invalid("a token needs a main choice or more, not ", main_);
  }

  index_t experts() const noexcept { return 2 * base::experts(); }
  index_t main_choices() const noexcept { return main_; }

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const {
    this->inner().route(x, context, t.own, t.inner);
    const plan& own = t.own;
    base::begin(own, p, experts(), own.most_rows());
    for (index_t token = 0; token < x.rows(); ++token) {
      const scalar sum = auxiliary_sum(own, token);
      for (const index_t i : own.of_token(token))
        if (own.rank(i) < main_)
          p.add(token, own.expert(i), own.weight(i), own.rank(i), own.input_scale(i));
        else
          p.add(token, base::experts() + own.expert(i), sum == scalar(0) ? scalar(0) : own.weight(i) / sum, own.rank(i),
                own.input_scale(i));
    }
    base::end(own, p);
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) {
    const plan& own = t.own;
    base::room_for_gradients(t);
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
    base::pass_back(x, context, t, dx);
  }

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
