/// Cosine gate: the angle between a token and a vector of each expert, times a learned scale.
///
///   z [T,P] = x [T,D] A^T (+ a)  or x itself     v [E,P] one vector an expert
///   logits[t,e] = exp(min(theta, log 100)) <z[t] / max(|z[t]|, eps), v[e] / max(|v[e]|, eps)>
///
/// Parameters: projector.weight A [P,D] and projector.bias a [P] if there is a projector, sim_matrix v [E,P] (row e is
/// expert e's vector; Tutel stores the transpose, [P,E]), temperature theta [1], the logarithm of the scale.
/// Gradients: a unit vector u = z/|z| passes (du - u <u, du>) / |z|; below eps, and so for a vector of zeros, du / eps.
/// theta has none above log 100. The other published form (fairseq's; CompeteSMoE's baseline X-MoE) takes z as it is,
/// so that long tokens have large logits, and sets the rows of v to length 1.5 before every call, outside of the
/// gradient:
///   {.projected = 8, .projector_bias = false, .scale = 1, .trainable_scale = false, .unit_tokens = false, .vector_length = 1.5}
/// Here after_step() does that, for logits depend on the directions of v alone. A token of zeros without projector has
/// logits 0 and, as published, a gradient of 1/eps: raise smallest_norm where that happens. NaN or infinity in a token
/// gives NaN in all its logits. T = 0 is fine. Initial values: v normal with deviation 0.01, theta log 2, A and a
/// uniform within 1/sqrt(D). Chi et al. 2022, arXiv:2204.09179; as in Tutel (there P = 256).
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/kernel/linear.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// out = in / max(|in|, smallest); returns |in|.
template <typename Scalar>
Scalar normalize(const Scalar* in, Scalar* out, index_t count, Scalar smallest) noexcept {
  const Scalar norm = std::sqrt(kernel::dot(in, in, count));
  const Scalar divisor = norm < smallest ? smallest : norm;
  for (index_t i = 0; i < count; ++i) out[i] = in[i] / divisor;
  return norm;
}

/// din += the gradient of normalize() for dout.
template <typename Scalar>
void normalize_backward(const Scalar* out, const Scalar* dout, index_t count, Scalar norm, Scalar smallest,
                        Scalar* din) noexcept {
  const bool is_small = norm < smallest;
  const Scalar inner = is_small ? Scalar(0) : kernel::dot(out, dout, count);
  const Scalar divisor = is_small ? smallest : norm;
  for (index_t i = 0; i < count; ++i) din[i] += (dout[i] - inner * out[i]) / divisor;
}

}  // namespace detail

template <FloatOrDouble Scalar>
class cosine_gate {
public:
  using scalar = Scalar;
  struct tape {
    matrix_buffer<Scalar> projected;     ///< [T,P] if there is a projector
    matrix_buffer<Scalar> unit_tokens;   ///< [T,P] z / |z|, or z
    matrix_buffer<Scalar> unit_vectors;  ///< [E,P]
    matrix_buffer<Scalar> cosines;       ///< [T,E]
    buffer<Scalar> token_norms;
    buffer<Scalar> vector_norms;
    matrix_buffer<Scalar> dcosines;
    matrix_buffer<Scalar> dtokens;  ///< of unit tokens
    matrix_buffer<Scalar> dprojected;
    matrix_buffer<Scalar> dvectors;  ///< of unit vectors
  };
  struct options {
    index_t projected = 0;  ///< P; 0 means no projector, P = D
    bool projector_bias = true;
    double scale = 2;  ///< exp(theta) at the start: 1 / temperature
    bool trainable_scale = true;
    double largest_scale = 100;
    double smallest_norm = 1e-12;
    bool unit_tokens = true;   ///< false: z itself in place of z / |z|
    double vector_length = 0;  ///< what after_step() makes |v[e]|; 0: nothing
  };

  /// Throws std::invalid_argument unless D >= 1, E >= 1, P >= 0 and the scales and the smallest norm are positive.
  cosine_gate(index_t inputs, index_t experts, options o = {}) : options_(o), inputs_(inputs) {
    if (inputs < 1 || experts < 1 || o.projected < 0)
      throw_invalid("cosine_gate needs D >= 1, E >= 1 and P >= 0, not D = ", inputs, ", E = ", experts,
                    ", P = ", o.projected);
    if (!is_above(o.scale, 0) || is_nan(o.largest_scale) || o.largest_scale <= 0 || !is_above(o.smallest_norm, 0))
      throw_invalid("cosine_gate needs scale, largest_scale and smallest_norm > 0, not ", o.scale, ", ",
                    o.largest_scale, ", ", o.smallest_norm);
    if (!is_at_least(o.vector_length, 0))
      throw_invalid("cosine_gate cannot make vectors ", o.vector_length, " long");
    const auto initial = initial_values::uniform(1 / std::sqrt(static_cast<double>(inputs)));
    if (has_projector()) {
      weight_ = {{o.projected, inputs}, parameter_role::weight, initial};
      if (o.projector_bias) bias_ = {{o.projected}, parameter_role::vector, initial};
    }
    vectors_ = {
        {experts, has_projector() ? o.projected : inputs}, parameter_role::weight, initial_values::normal(0.01)};
    temperature_ = {{1}, parameter_role::vector, initial_values::constant(std::log(o.scale))};
    temperature_.set_frozen(!o.trainable_scale);
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t experts() const noexcept { return vectors_.rows(); }
  index_t projected() const noexcept { return vectors_.cols(); }
  /// exp(min(theta, log 100)).
  Scalar scale() const { return std::exp(is_capped() ? cap() : *temperature_.data()); }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_out<Scalar> logits, tape& t) const {
    const index_t tokens = x.rows();
    if (has_projector()) {
      t.projected.resize(tokens, projected());
      linear_forward<Scalar>(x, weight_, t.projected.map(), context.executor);
      if (bias_.size() > 0) t.projected.map().rowwise() += bias_.map().col(0).transpose();
    }
    t.unit_tokens.resize(tokens, projected());
    t.token_norms.resize(tokens);
    t.unit_vectors.resize(experts(), projected());
    t.vector_norms.resize(experts());
    t.cosines.resize(tokens, experts());
    for (index_t e = 0; e < experts(); ++e)
      t.vector_norms[e] =
          detail::normalize(vectors_.data() + e * projected(), t.unit_vectors.row(e), projected(), smallest());
    const Scalar factor = scale();
    const index_t work = experts() * projected();
    context.executor.parallel_blocks(tokens, detail::linear_row_block, work, [&](index_t begin, index_t end) {
      for (index_t r = begin; r < end; ++r) {
        const Scalar* z = has_projector() ? t.projected.row(r) : x.data() + r * x.outerStride();
        if (options_.unit_tokens)
          t.token_norms[r] = detail::normalize(z, t.unit_tokens.row(r), projected(), smallest());
        else
          std::copy_n(z, projected(), t.unit_tokens.row(r));
      }
      kernel::multiply_nt(end - begin, experts(), projected(), t.unit_tokens.row(begin), projected(),
                          t.unit_vectors.data(), projected(), t.cosines.row(begin), experts());
      for (index_t r = begin; r < end; ++r)
        for (index_t e = 0; e < experts(); ++e) logits(r, e) = factor * t.cosines(r, e);
    });
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_in<Scalar> dlogits, tape& t,
                tokens_out<Scalar> dx) {
    const index_t tokens = x.rows();
    const Scalar factor = scale();
    t.dcosines.resize(tokens, experts());
    t.dtokens.resize(tokens, projected());
    if (has_projector()) t.dprojected.set_zero(tokens, projected());
    const index_t work = experts() * projected();
    context.executor.parallel_blocks(tokens, detail::linear_row_block, work, [&](index_t begin, index_t end) {
      for (index_t r = begin; r < end; ++r)
        for (index_t e = 0; e < experts(); ++e) t.dcosines(r, e) = factor * dlogits(r, e);
      kernel::multiply_nn(end - begin, projected(), experts(), t.dcosines.row(begin), experts(), t.unit_vectors.data(),
                          projected(), t.dtokens.row(begin), projected());
      for (index_t r = begin; r < end; ++r) {
        Scalar* dz = has_projector() ? t.dprojected.row(r) : dx.data() + r * dx.outerStride();
        if (options_.unit_tokens)
          detail::normalize_backward(t.unit_tokens.row(r), t.dtokens.row(r), projected(), t.token_norms[r], smallest(),
                                     dz);
        else
          kernel::add_scaled(Scalar(1), t.dtokens.row(r), dz, projected());
      }
    });
    backward_vectors(context, t);
    if (!is_capped())
      for (index_t r = 0; r < tokens; ++r)
        temperature_.gradient()[0] += kernel::dot(t.dcosines.row(r), t.cosines.row(r), experts());
    if (!has_projector()) return;
    linear_backward<Scalar>(x, weight_, t.dprojected.map(), dx, context.executor);
    if (bias_.size() > 0) add_column_sums(t.dprojected.map(), bias_.gradient());
  }

  /// Sets the rows of v to their length, if they are to have one; rows of zeros have no direction and stay.
  void after_step(const routing_statistics&, tape&) {
    if (!(options_.vector_length > 0)) return;
    for (index_t e = 0; e < experts(); ++e) {
      Scalar* v = vectors_.data() + e * projected();
      const Scalar norm = std::sqrt(kernel::dot(v, v, projected()));
      if (!(norm > Scalar(0))) continue;
      for (index_t i = 0; i < projected(); ++i) v[i] *= static_cast<Scalar>(options_.vector_length) / norm;
    }
  }

  parameter<Scalar>& projector_weight() noexcept { return weight_; }
  parameter<Scalar>& projector_bias() noexcept { return bias_; }
  parameter<Scalar>& sim_matrix() noexcept { return vectors_; }
  parameter<Scalar>& temperature() noexcept { return temperature_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if (self.weight_.size() > 0) visit("projector.weight", self.weight_);
    if (self.bias_.size() > 0) visit("projector.bias", self.bias_);
    visit("sim_matrix", self.vectors_);
    visit("temperature", self.temperature_);
  }

private:
  bool has_projector() const noexcept { return options_.projected > 0; }
  Scalar smallest() const noexcept { return static_cast<Scalar>(options_.smallest_norm); }
  Scalar cap() const { return static_cast<Scalar>(std::log(options_.largest_scale)); }
  bool is_capped() const { return *temperature_.data() > cap(); }

  void backward_vectors(const routing_context<Scalar>& context, tape& t) {
    vectors_.ensure_gradient();
    if (t.dcosines.rows() == 0) return;
    t.dvectors.resize(experts(), projected());
    Scalar* gradient = vectors_.gradient().data();
    const index_t work = projected() * t.dcosines.rows() / 4;
    context.executor.parallel_blocks(experts(), detail::linear_weight_block, work, [&](index_t begin, index_t end) {
      kernel::multiply_tn(end - begin, projected(), t.dcosines.rows(), t.dcosines.data() + begin, experts(),
                          t.unit_tokens.data(), projected(), t.dvectors.row(begin), projected());
      for (index_t e = begin; e < end; ++e)
        detail::normalize_backward(t.unit_vectors.row(e), t.dvectors.row(e), projected(), t.vector_norms[e], smallest(),
                                   gradient + e * projected());
    });
  }

  options options_;
  index_t inputs_;
  parameter<Scalar> weight_;
  parameter<Scalar> bias_;
  parameter<Scalar> vectors_;
  parameter<Scalar> temperature_;
};

static_assert(DifferentiableGate<cosine_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
