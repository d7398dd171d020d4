/// A projection by groups and a group norm over time in front of a quantiser: the front of vq-wav2vec.
///
///   p^g = W^g x^g                              x [T,D] in G groups of d = D/G columns, W [D,d], no bias
///   u^g = (p^g - mean) / sqrt(variance + epsilon)      over the tokens of an item and the d columns of the group
///   z = gain u + bias       q, ids = inner(z)       y = q
///
///   group_projected_quantizer vq{G, product_quantizer{std::vector(G, vector_quantizer{learned_codes<float>{320, d}})}};
///
/// Items are the groups of the context, or the batch is one; hidden tokens are in no mean. What a token becomes depends
/// on its whole item. Gradients go through the norm's statistics. Parameters: "projection" W (normal with deviation
/// 1/sqrt(d)), "gain", "bias", "quantizer". Everything else: codebook/structure/quantizer_decorator.hpp.
/// Baevski, Schneider, Auli 2020, "vq-wav2vec", section 3.3; Wu, He 2018, "Group Normalization".
#pragma once

#include <sluice/codebook/structure/quantizer_decorator.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct group_projected_options {
  double epsilon = 1e-5;
};

namespace detail {

template <typename Scalar>
struct group_projected_memory {
  matrix_buffer<Scalar> unit;   ///< u [T,D]
  matrix_buffer<Scalar> scale;  ///< 1 / sqrt(variance + epsilon) of every item and group
  matrix_buffer<Scalar> dprojected;
};

}  // namespace detail

template <Quantizer Inner>
class group_projected_quantizer
    : public quantizer_decorator<group_projected_quantizer<Inner>, Inner,
                                 detail::group_projected_memory<typename Inner::scalar>> {
  using base =
      quantizer_decorator<group_projected_quantizer, Inner, detail::group_projected_memory<typename Inner::scalar>>;
  using memory = detail::group_projected_memory<typename Inner::scalar>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = false;
  static constexpr bool mixes_tokens = true;

  /// Throws std::invalid_argument unless G divides the quantiser's width and epsilon > 0.
  group_projected_quantizer(index_t groups, Inner quantizer, group_projected_options o = {})
      : base(std::move(quantizer)), groups_(groups), options_(o) {
    const index_t width = this->inputs();
    if (groups < 1 || width % groups != 0 || !is_above(o.epsilon, 0.0))
      throw_invalid("group_projected_quantizer needs groups that divide D and epsilon > 0, not ", groups,
                    " of D = ", width, " and ", o.epsilon);
    weight_ = {{width, width / groups}, parameter_role::weight,
               initial_values::normal(1 / std::sqrt(static_cast<double>(width / groups)))};
    gain_ = {{width}, parameter_role::vector, initial_values::constant(1)};
    bias_ = {{width}, parameter_role::vector};
  }

  /// G.
  index_t groups() const noexcept { return groups_; }
  parameter<scalar>& projection() noexcept { return weight_; }
  parameter<scalar>& gain() noexcept { return gain_; }
  parameter<scalar>& bias() noexcept { return bias_; }

private:
  index_t part() const noexcept { return this->inputs() / groups_; }

  /// f(item, group, its tokens) for every item and group, on threads.
  template <typename F>
  void for_each_part(const context_type& context, index_t tokens, F&& f) const {
    const index_t parts = context.group_count() * groups_;
    context.executor.for_work(tokens * this->inputs() * part()).parallel_for(parts, [&](index_t p) {
      f(p / groups_, p % groups_, context.group(p / groups_, tokens));
    });
  }

  void before(tokens_in<scalar> x, tokens_out<scalar> z, memory& m, const context_type& context) const {
    const index_t tokens = x.rows(), d = part();
    m.unit.set_zero(tokens, this->inputs());
    m.scale.set_zero(context.group_count(), groups_);
    for_each_part(context, tokens, [&](index_t item, index_t g, token_range range) {
      scalar sum = 0, squares = 0, count = 0;
      const auto row_of = [&](index_t t) { return m.unit.row(t) + g * d; };
      const auto for_seen = [&](auto&& f) {
        for (index_t t = range.begin; t < range.end; ++t)
          if (!context.is_padding(t) && !any_nan(x.data() + t * x.outerStride(), x.cols())) f(t);
      };
      for_seen([&](index_t t) {
        for (index_t i = 0; i < d; ++i) {
          row_of(t)[i] = kernel::dot(weight_.data() + (g * d + i) * d, x.data() + t * x.outerStride() + g * d, d);
          sum += row_of(t)[i];
          count += 1;
        }
      });
      const scalar mean = count == 0 ? scalar(0) : sum / count;
      for_seen([&](index_t t) {
        for (index_t i = 0; i < d; ++i) squares += (row_of(t)[i] - mean) * (row_of(t)[i] - mean);
      });
      const scalar scale =
          count == 0 ? scalar(0) : 1 / std::sqrt(squares / count + static_cast<scalar>(options_.epsilon));
      m.scale(item, g) = scale;
      for_seen([&](index_t t) {
        for (index_t i = 0; i < d; ++i) row_of(t)[i] = (row_of(t)[i] - mean) * scale;
      });
      for (index_t t = range.begin; t < range.end; ++t)
        for (index_t i = 0; i < d; ++i)
          z(t, g * d + i) = row_of(t)[i] * gain_.data()[g * d + i] + bias_.data()[g * d + i];
    });
  }
  void after(tokens_in<scalar> q, tokens_out<scalar> y, memory&, const executor_ref&) const { y = q; }
  void after_backward(tokens_in<scalar> dy, tokens_out<scalar> dq, tape&) { dq = dy; }

  /// With h = gain dz: dp = scale (h - mean(h) - u mean(u h)), over the seen numbers of the item and group.
  void before_backward(tokens_in<scalar> dz, tokens_out<scalar> dx, tape& t) {
    const index_t tokens = dz.rows(), d = part();
    t.dprojected.set_zero(tokens, this->inputs());
    for_each_part(t.context, tokens, [&](index_t item, index_t g, token_range range) {
      scalar sum = 0, inner = 0, count = 0;
      const auto for_seen = [&](auto&& f) {
        for (index_t token = range.begin; token < range.end; ++token)
          if (t.kept.counts(token))
            for (index_t i = g * d; i < (g + 1) * d; ++i) f(token, i, gain_.data()[i] * dz(token, i), t.unit(token, i));
      };
      for_seen([&](index_t, index_t, scalar h, scalar u) { sum += h, inner += h * u, count += 1; });
      for_seen([&](index_t token, index_t i, scalar h, scalar u) {
        t.dprojected(token, i) = t.scale(item, g) * (h - sum / count - u * (inner / count));
      });
      for (index_t token = range.begin; token < range.end; ++token)
        for (index_t i = g * d; i < (g + 1) * d; ++i)
          kernel::add_scaled(t.dprojected(token, i), weight_.data() + i * d, &dx(token, g * d), d);
    });
    scalar *dweight = weight_.gradient().data(), *dgain = gain_.gradient().data(), *dbias = bias_.gradient().data();
    const const_matrix_map<scalar> x = t.kept.x();
    t.context.executor.parallel_blocks(this->inputs(), d, tokens * d, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i)
        for (index_t token = 0; token < tokens; ++token) {
          if (!t.kept.counts(token)) continue;
          kernel::add_scaled(t.dprojected(token, i), x.data() + token * x.cols() + i / d * d, dweight + i * d, d);
          dgain[i] += dz(token, i) * t.unit(token, i);
          dbias[i] += dz(token, i);
        }
    });
  }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    visit("projection", self.weight_);
    visit("gain", self.gain_);
    visit("bias", self.bias_);
  }

  index_t groups_;
  group_projected_options options_;
  parameter<scalar> weight_, gain_, bias_;
};

}  // namespace sluice::inline SLUICE_ISA
