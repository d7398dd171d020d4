/// A gate that is connected to some of the experts only: the others have logit -infinity, so weight and gradient
/// exactly 0.
///
///   logits[t,e] = gate(x)[t,e] where connected[e], else -infinity         dlogits~ = dlogits where connected, else 0
///
/// With a gate a task over shared experts (layer/multi_gate.hpp) it makes experts exclusive (MMoE-Ex).
/// exclusive_experts draws who is connected: the first floor(E share) experts are each given a task at random;
///   exclusivity   such an expert is connected to its task alone          exclusion   to every task but its own
/// and at least one expert stays with all tasks. The released code only starts with a zero row of the gate's weights
/// and trains it on: its logit is the bias, not -infinity, and it drifts. For that form set those rows of a linear gate
/// to 0 after initialize(), without this gate.
///
/// A router needs as many connected experts as it chooses: a top-k router would take cut ones as its last choices, with
/// weight 0. NaN and T = 0 as the inner gate. Aoki, Tung, Oliveira 2021, "Heterogeneous Multi-task Learning with Expert
/// Diversity", arXiv:2106.10595.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/random.hpp>
#include <sluice/gate/decorator.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class connected_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> dlogits;  ///< of the inner gate
  };

  /// 1 where the gate is connected. Throws std::invalid_argument unless there is an entry an expert and one is
  /// connected.
  connected_gate(Inner inner, std::vector<std::uint8_t> connected)
      : gate_decorator<Inner>(std::move(inner)), connected_(std::move(connected)) {
    if (static_cast<index_t>(connected_.size()) != this->experts())
      throw_invalid("connected_gate needs an entry for each of E = ", this->experts(), " experts, not ",
                    connected_.size());
    if (std::count(connected_.begin(), connected_.end(), 0) == this->experts())
      throw_invalid("connected_gate is connected to none of E = ", this->experts(), " experts");
  }

  const std::vector<std::uint8_t>& connected() const noexcept { return connected_; }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    this->inner().forward(x, context, logits, t.inner);
    // A NaN stays: it is what shows that a token is invalid.
    for_cut(x.rows(), [&](index_t token, index_t e) {
      if (!is_nan(logits(token, e))) logits(token, e) = -std::numeric_limits<scalar>::infinity();
    });
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dlogits.resize(dlogits.rows(), dlogits.cols());
    t.dlogits.map() = dlogits;
    for_cut(x.rows(), [&](index_t token, index_t e) { t.dlogits(token, e) = 0; });
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

private:
  template <typename F>
  void for_cut(index_t tokens, F&& f) const {
    for (index_t e = 0; e < this->experts(); ++e)
      for (index_t token = 0; token < tokens && connected_[as_size(e)] == 0; ++token) f(token, e);
  }

  std::vector<std::uint8_t> connected_;
};

enum class expert_diversity { exclusivity, exclusion };

inline constexpr random_site exclusive_experts_site{"exclusive_experts.task"};

/// For every task the experts that its gate is connected to. Throws std::invalid_argument unless E, Q >= 1 and 0 <=
/// share <= 1.
inline std::vector<std::vector<std::uint8_t>> exclusive_experts(index_t experts, index_t tasks,
                                                                const random_source& random,
                                                                expert_diversity form = expert_diversity::exclusivity,
                                                                double share = 0.5) {
  if (experts < 1 || tasks < 1 || !is_between(share, 0, 1))
    throw_invalid("exclusive_experts needs E, Q >= 1 and a share in 0..1, not ", experts, ", ", tasks, " and ", share);
  std::vector<std::vector<std::uint8_t>> connected(as_size(tasks), std::vector<std::uint8_t>(as_size(experts), 1));
  const auto drawn = static_cast<index_t>(std::floor(static_cast<double>(experts) * share));
  for (index_t e = 0; e < (std::min)(drawn, experts - 1); ++e) {
    const double u = random.uniform(exclusive_experts_site, e) * static_cast<double>(tasks);
    const index_t own = (std::min)(static_cast<index_t>(u), tasks - 1);
    for (index_t q = 0; q < tasks; ++q)
      connected[as_size(q)][as_size(e)] = (q == own) == (form == expert_diversity::exclusivity);
  }
  return connected;
}

}  // namespace sluice::inline SLUICE_ISA
