/// Which experts are chosen where in a sequence: a histogram by position.
///
///   position of token t: how many tokens of its sequence come before it
///   chosen[p,e]    tokens at position p that go to expert e            weight[p,e]    the sum of their weights
///   tokens[p]      sequences that reach position p with a token that goes anywhere
///
///   chosen_experts seen(E);
///   seen.add(workspace.plan, context);          // after every forward call
///
/// A sequence is what the context says (sequence_borders); without any the batch is one. Rows of one sequence are the
/// paper's picture of chosen experts: dense_weights() of its plan. Padding, invalid and dropped assignments are not
/// counted. Counters grow to the longest sequence seen. Lo et al. 2024, arXiv:2406.18219, section 5.4.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/sparse_plan.hpp>

#include <vector>

namespace sluice::inline SLUICE_ISA {

class chosen_experts {
public:
  /// Throws std::invalid_argument unless E >= 1.
  explicit chosen_experts(index_t experts) : chosen_(0, experts), weight_(0, experts) {
    if (experts < 1) throw_invalid("chosen_experts needs E >= 1, not ", experts);
  }

  /// Throws std::invalid_argument if the plan has another number of experts, or sequences do not fit it.
  template <typename Scalar>
  void add(const sparse_plan<Scalar>& plan, const routing_context<Scalar>& context = {}) {
    if (plan.experts() != experts())
      throw_invalid("chosen_experts counts E = ", experts(), " experts, the plan has ", plan.experts());
    check_context(context, plan.tokens());
    for (index_t s = 0; s < context.sequence_count(); ++s) {
      const token_range own = context.sequence(s, plan.tokens());
      grow(own.end - own.begin);
      for (index_t t = own.begin; t < own.end; ++t) {
        const index_t p = t - own.begin;
        const auto assignments = plan.of_token(t);
        tokens_[as_size(p)] += assignments.empty() ? 0 : 1;
        for (const index_t i : assignments) {
          chosen_(p, plan.expert(i)) += 1;
          weight_(p, plan.expert(i)) += static_cast<double>(plan.weight(i));
        }
      }
    }
  }

  index_t experts() const noexcept { return chosen_.cols(); }
  index_t positions() const noexcept { return chosen_.rows(); }
  const matrix<double>& chosen() const noexcept { return chosen_; }
  const matrix<double>& weight() const noexcept { return weight_; }
  const std::vector<index_t>& tokens() const noexcept { return tokens_; }

private:
  void grow(index_t positions) {
    const index_t before = chosen_.rows();
    if (positions <= before) return;
    for (auto* m : {&chosen_, &weight_}) {
      m->conservativeResize(positions, Eigen::NoChange);
      m->bottomRows(positions - before).setZero();
    }
    tokens_.resize(as_size(positions), 0);
  }

  matrix<double> chosen_, weight_;
  std::vector<index_t> tokens_;
};

}  // namespace sluice::inline SLUICE_ISA
