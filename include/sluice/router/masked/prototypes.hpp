/// Expert prototyping: experts stand in k groups, and every token takes the best of each group.
///
///   prototype z = experts z E/k .. (z+1) E/k - 1     p_z = softmax of L[t] over the prototype z
///   e_z = the largest of p_z   w = p_z[e_z]          y = sum over z of w f(x)            for z = 0 .. k-1
///   dl[j] = g w (1[j = e_z] - p_z[j])                for j in prototype z only
///
/// That is k top-1 routers side by side in one gate: no prototype competes with another, and weights sum to at most k,
/// not to 1. The choice of prototype z has rank z. Capacity C = cf T k / E an expert (capacity_limit::vmoe without its
/// multiple) is that of top-1 within each prototype; with cf / k computation is that of one expert a token. Refused: E
/// that k does not divide, and a call with another k. Ties in a prototype: the lower expert. NaN and T = 0 as
/// everywhere. Causal. Yang et al. 2021, "M6-T: Exploring Sparse Expert Models and Beyond", arXiv:2105.15082.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/router/token_choice.hpp>

#include <concepts>
#include <span>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class prototype_rule {
public:
  /// Throws std::invalid_argument unless k >= 1.
  explicit prototype_rule(index_t prototypes) : prototypes_(prototypes) {
    if (prototypes < 1) throw_invalid("expert prototyping needs k >= 1, not k = ", prototypes);
  }

  index_t top_k() const noexcept { return prototypes_; }
  void validate(index_t experts) const {
    if (experts % prototypes_ != 0)
      throw_invalid("E = ", experts, " experts do not make k = ", prototypes_, " prototypes of equal size");
  }
  void validate_call(const choice_call<Scalar>& call) const {
    if (call.k != prototypes_)
      throw_invalid("a token has an expert of each of ", prototypes_, " prototypes; the call asks for k = ", call.k);
  }

  void score(const choice_row<Scalar>& row, Scalar* scores) const {
    const index_t size = row.experts / prototypes_;
    for (index_t first = 0; first < row.experts; first += size)
      kernel::softmax(row.logits + first, scores + first, size);
  }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    const index_t size = row.experts / prototypes_;
    for (index_t z = 0; z < prototypes_; ++z) ids[z] = z * size + kernel::arg_max(row.logits + z * size, size);
    return prototypes_;
  }

  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    for (const index_t e : ids) *weights++ = row.scores[e];
  }

  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    const index_t size = row.experts / prototypes_;
    for (std::size_t j = 0; j < weighed.ids.size(); ++j) {
      const Scalar pull = weighed.dweights[j] * weighed.weights[j];
      const index_t first = weighed.ids[j] / size * size;
      dlogits[weighed.ids[j]] += pull;
      for (index_t e = first; e < first + size; ++e) dlogits[e] -= pull * row.scores[e];
    }
  }

private:
  index_t prototypes_;
};

/// sluice::prototype_router<float> router{64, 8, {.prototypes = 2}};
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Capacity = dropless>
class prototype_router : public token_choice_router<GateType, prototype_rule<Scalar>, no_noise<Scalar>, Capacity> {
  using base = token_choice_router<GateType, prototype_rule<Scalar>, no_noise<Scalar>, Capacity>;

public:
  struct options {
    index_t prototypes = 2;  ///< k
  };

  /// A linear gate without bias.
  prototype_router(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : prototype_router(GateType(inputs, experts), o) {}
  explicit prototype_router(GateType gate, options o = {}, Capacity capacity = {})
      : base(std::move(gate), prototype_rule<Scalar>(o.prototypes), {}, std::move(capacity)) {}
};

static_assert(explain_choice_rule<prototype_rule<float>, float>());
static_assert(DifferentiableRouter<prototype_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
