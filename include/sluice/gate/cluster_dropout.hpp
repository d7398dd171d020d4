/// Drops experts at random in training, but never a whole cluster: the dropped ones' logits are -infinity for the step.
///
///   cluster c = experts c n .. c n + n - 1, of size n     expert e is out if u[e] < rate, but the largest u stays
///
///   cluster_dropout_gate gate{linear_gate<float>{64, 8}, {.cluster = 4, .rate = 0.1}};
///
/// u is drawn once a call, uniformly, at cluster_dropout_gate::site, position e. Tokens of a dropped expert go where
/// their next best logit is, which a loss that makes the experts of a cluster interchangeable
/// (loss/cluster_variance.hpp) puts in the same cluster. With fewer experts left than k, the rule goes into
/// visible_rule (router/masked/id_mask.hpp). Logits of dropped experts have no gradient. rate 0, or inference: the gate
/// inside, bit for bit. Causal if that is.
///
/// This is a reading of "cluster-level expert dropout": the paper's own form was not to be had, and its name is left to
/// it. Xie et al. 2022, "MoEC: Mixture of Expert Clusters", arXiv:2207.09094.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/order.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class cluster_dropout_gate : public gate_decorator<Inner> {
  using base = gate_decorator<Inner>;

public:
  using typename base::scalar;
  static constexpr random_site site{"cluster_dropout_gate.experts"};
  struct tape : decorated_tape<Inner> {
    buffer<std::uint8_t> out;  ///< [E] 1 where the expert is dropped
    matrix_buffer<scalar> dlogits;
  };
  struct options {
    index_t cluster = 1;  ///< n
    double rate = 0;
  };

  /// Throws std::invalid_argument unless n divides E and 0 <= rate <= 1.
  cluster_dropout_gate(Inner inner, options o) : base(std::move(inner)), options_(o) {
    if (o.cluster < 1 || this->experts() % o.cluster != 0)
      throw_invalid("E = ", this->experts(), " experts do not make clusters of ", o.cluster);
    if (!is_between(o.rate, 0, 1)) throw_invalid("experts cannot be dropped at a rate of ", o.rate);
  }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    this->inner().forward(x, context, logits, t.inner);
    draw(context, t);
    for_dropped(x.rows(), t, [&](index_t token, index_t e) {
      logits(token, e) = kernel::number_of_key<scalar>(-kernel::infinity_key<scalar>);
    });
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dlogits.resize(dlogits.rows(), dlogits.cols());
    t.dlogits.map() = dlogits;
    for_dropped(x.rows(), t, [&](index_t token, index_t e) { t.dlogits(token, e) = 0; });
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

private:
  template <typename F>
  void for_dropped(index_t tokens, const tape& t, F&& f) const {
    for (index_t e = 0; e < this->experts(); ++e)
      for (index_t token = 0; token < tokens && t.out[e]; ++token) f(token, e);
  }

  void draw(const routing_context<scalar>& context, tape& t) const {
    t.out.assign(this->experts(), 0);
    if (!context.training || options_.rate == 0) return;
    for (index_t first = 0; first < this->experts(); first += options_.cluster) {
      index_t survivor = first;
      double largest = -1;
      for (index_t e = first; e < first + options_.cluster; ++e) {
        const double u = context.random.uniform(site, e);
        t.out[e] = u < options_.rate;
        if (u <= largest) continue;
        largest = u;
        survivor = e;
      }
      t.out[survivor] = 0;
    }
  }

  options options_;
};

static_assert(DifferentiableGate<cluster_dropout_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
