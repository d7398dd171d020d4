/// Transformer-VQ's attention: keys are quantised, so that a long past costs as much as its codes.
///
///   x [T,D] -> q, k [T, heads dk], v, z [T, heads dv];  q and k: root mean square 1 a head, then times dk^(-1/4)
///   k^ = code nearest to k (codebook/vector_quantizer.hpp), a codebook a head
///   a = causal attention of q over k^ and silu(v) in linear time (codebook/attention/window_and_cache.hpp)
///   y = (a * silu(z)) W_out
///   position term: r_d = features(d) W_r dk^(-1/4),   features(d) = [sin(d / length^(2i/D)), cos(d / length^(2i/D))]
///
///   quantized_attention<float> attention{D, {.heads = 2, .key_width = 64, .value_width = 128, .codes = 512}};
///   normalized_layer block{rms_norm<float>{D, {.epsilon = 1e-6F, .bias = true}}, attention};      // as published
///
/// Sequences are those of the context (sequences, or groups); positions of each begin at 0. Codes are moving averages
/// of keys, learned in after_step; the commitment is the mean over tokens of the sum over heads of |k - k^|^2. Keys get
/// the straight-through gradient while they are inside the window. Padding and tokens with NaN are seen by nobody; they
/// get zero and NaN. Tasks are heads of sequences; equal bits for any number of threads. Inference is const.
/// Parameters: "query", "key", "value", "gate", "relative", "output" (weights), "content_bias", "position_bias" [heads
/// dk], "codebook.0" ... Lingle 2023, "Transformer-VQ: Linear-Time Transformers via Vector Quantization".
#pragma once

#include <sluice/codebook/attention/attention_heads.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <cmath>
#include <concepts>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class quantized_attention
    : public token_mixer<quantized_attention<Scalar>, Scalar, detail::quantized_attention_workspace<Scalar>,
                         detail::quantized_attention_tape<Scalar>> {
  using base = token_mixer<quantized_attention, Scalar, detail::quantized_attention_workspace<Scalar>,
                           detail::quantized_attention_tape<Scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::tape;
  using key_quantizer = detail::key_quantizer<Scalar>;
  static constexpr bool causal = true;
  static constexpr bool exact_gradient = false;  ///< of the keys

  /// Throws std::invalid_argument unless all sizes are at least 1, window and commitment at least 0.
  explicit quantized_attention(index_t width, const quantized_attention_options& o = {})
      : options_(o), norm_(0, static_cast<Scalar>(1e-6 * static_cast<double>(o.key_width))) {
    if (width < 1 || o.heads < 1 || o.key_width < 1 || o.value_width < 1 || o.codes < 1 || o.block < 1 ||
        o.window < 0 || !is_at_least(o.commitment, 0.0) || !is_above(o.length, 1.0))
      throw_invalid(
          "quantized_attention needs D, heads, widths, codes and block >= 1, window and commitment >= 0 and length > "
          "1, not ",
          width, ", ", o.heads, ", ", o.key_width, ", ", o.value_width, ", ", o.codes, ", ", o.block, ", ", o.window,
          ", ", o.commitment, ", ", o.length);
    const auto weight = [](index_t out, index_t in) {
      return parameter<Scalar>({out, in}, parameter_role::weight,
                               initial_values::normal(1 / std::sqrt(static_cast<double>(in))));
    };
    query_ = weight(key_columns(), width), key_ = weight(key_columns(), width);
    value_ = weight(value_columns(), width), gate_ = weight(value_columns(), width);
    relative_ = weight(key_columns(), width), output_ = weight(width, value_columns());
    content_bias_ = {{key_columns()}, parameter_role::vector};
    position_bias_ = {{key_columns()}, parameter_role::vector};
    for (index_t h = 0; h < o.heads; ++h)
      codebooks_.emplace_back(moving_average_codes<Scalar>(o.codes, o.key_width, o.averages),
                              commitment_loss{.encoder = o.commitment * static_cast<double>(o.key_width)});
    features_.resize(o.window + 1, width);
    for (index_t d = 0; d <= o.window; ++d)
      for (index_t i = 0; i < width; ++i) {
        const index_t half = (width + 1) / 2;  // sines first
        const double place = static_cast<double>(d) /
                             std::pow(o.length, 2.0 * static_cast<double>(i % half) / static_cast<double>(width));
        features_(d, i) = static_cast<Scalar>(i < half ? std::sin(place) : std::cos(place));
      }
  }

  index_t inputs() const noexcept { return query_.cols(); }
  const quantized_attention_options& options() const noexcept { return options_; }

  /// Lets the codes learn from the keys of this tape's batch.
  void after_step(tape& t) {
    t.record.validate(this);
    for (index_t h = 0; h < options_.heads; ++h) codebooks_[as_size(h)].after_step(t.key[as_size(h)]);
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t numbers = (5 + (training ? 6 : 0)) * key_columns() + (5 + (training ? 4 : 0)) * value_columns();
    const index_t caches =
        training ? (rows / options_.block + 1) * options_.heads * options_.codes * (1 + options_.value_width) : 0;
    return (rows * numbers + caches) * static_cast<index_t>(sizeof(Scalar));
  }

  parameter<Scalar>& query() noexcept { return query_; }
  parameter<Scalar>& key() noexcept { return key_; }
  parameter<Scalar>& value() noexcept { return value_; }
  parameter<Scalar>& gate() noexcept { return gate_; }
  parameter<Scalar>& relative() noexcept { return relative_; }
  parameter<Scalar>& output() noexcept { return output_; }
  parameter<Scalar>& content_bias() noexcept { return content_bias_; }
  parameter<Scalar>& position_bias() noexcept { return position_bias_; }
  key_quantizer& codebook(index_t head) noexcept { return codebooks_[as_size(head)]; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("query", self.query_);
    visit("key", self.key_);
    visit("value", self.value_);
    visit("gate", self.gate_);
    visit("relative", self.relative_);
    visit("output", self.output_);
    visit("content_bias", self.content_bias_);
    visit("position_bias", self.position_bias_);
    for (std::size_t h = 0; h < self.codebooks_.size(); ++h)
      visit("codebook." + std::to_string(h), self.codebooks_[h].codebook());
  }

private:
  index_t key_columns() const noexcept { return options_.heads * options_.key_width; }
  index_t value_columns() const noexcept { return options_.heads * options_.value_width; }
  /// dk^(-1/4), and what makes that of a row of unit length: its root mean square is 1 / sqrt(dk).
  Scalar scale() const { return static_cast<Scalar>(std::pow(static_cast<double>(options_.key_width), -0.25)); }
  Scalar scale_of_unit() const { return static_cast<Scalar>(std::pow(static_cast<double>(options_.key_width), 0.25)); }

  template <typename M>
  auto key_part(M m, index_t head) const {
    return m.middleCols(head * options_.key_width, options_.key_width);
  }
  matrix_map<Scalar> by_head(matrix_buffer<Scalar>& m) const {
    return {m.data(), m.rows() * options_.heads, options_.key_width};
  }

  void normalize(matrix_buffer<Scalar>& from, matrix_buffer<Scalar>& to, typename unit_norm<Scalar>::tape& t,
                 const executor_ref& executor) const {
    to.resize(from.rows(), from.cols());
    norm_.forward(by_head(from), by_head(to), t, executor);
    to.map() *= scale_of_unit();
  }
  void normalize_backward(matrix_buffer<Scalar>& from, matrix_buffer<Scalar>& dto, typename unit_norm<Scalar>::tape& t,
                          matrix_buffer<Scalar>& dfrom, const executor_ref& executor) {
    dto.map() *= scale_of_unit();
    norm_.backward(by_head(from), by_head(dto), t, by_head(dfrom), executor);
  }

  template <typename Memory>
  void mix(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context) const {
    const executor_ref& executor = context.executor;
    const auto project = [&](const parameter<Scalar>& weight, matrix_buffer<Scalar>& to) {
      to.resize(x.rows(), weight.rows());
      linear_forward(x, weight, to.map(), executor);
    };
    project(query_, m.queries);
    project(key_, m.keys);
    project(value_, m.values);
    project(gate_, m.gates);
    normalize(m.queries, m.q, m.q_norm, executor);
    normalize(m.keys, m.k, m.k_norm, executor);
    m.v.resize(x.rows(), value_columns());
    kernel::transform(
        m.v.size(), [](auto z) { return silu::value(z); }, m.v.data(), m.values.data());
    m.relative.resize(features_.rows(), key_columns());
    linear_forward(features_, relative_, m.relative.map(), executor);
    m.relative.map() *= scale();
    quantize_keys(m, context);
    attend(m, context);
    m.gated.resize(x.rows(), value_columns());
    for (index_t i = 0; i < m.gated.size(); ++i)
      m.gated.data()[i] = m.attended.data()[i] * silu::value(m.gates.data()[i]);
    linear_forward(std::as_const(m.gated).map(), output_, y, executor);
  }

  void mix_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    const executor_ref& executor = t.context.executor;
    const index_t rows = dy.rows();
    t.dgated.set_zero(rows, value_columns());
    linear_backward(t.gated.map(), output_, dy, t.dgated.map(), executor);
    t.dattended.resize(rows, value_columns());
    t.dgates.resize(rows, value_columns());
    for (index_t i = 0; i < t.dgated.size(); ++i) {
      const Scalar z = t.gates.data()[i], d = t.dgated.data()[i];
      t.dattended.data()[i] = d * silu::value(z);
      t.dgates.data()[i] = d * t.attended.data()[i] * silu::derivative(z);
    }
    attend_backward(t);
    for (index_t i = 0; i < t.dvalues.size(); ++i) t.dvalues.data()[i] *= silu::derivative(t.values.data()[i]);
    for (index_t h = 0; h < options_.heads; ++h)
      codebooks_[as_size(h)].backward(key_part(t.dcoded.map(), h), key_part(t.dk.map(), h), t.key[as_size(h)]);
    t.dqueries.set_zero(rows, key_columns());
    t.dkeys.set_zero(rows, key_columns());
    normalize_backward(t.queries, t.dq, t.q_norm, t.dqueries, executor);
    normalize_backward(t.keys, t.dk, t.k_norm, t.dkeys, executor);
    const auto x = t.kept.x();
    linear_backward(x, query_, t.dqueries.map(), dx, executor);
    linear_backward(x, key_, t.dkeys.map(), dx, executor);
    linear_backward(x, value_, t.dvalues.map(), dx, executor);
    linear_backward(x, gate_, t.dgates.map(), dx, executor);
  }

  /// Keys of hidden tokens are hidden from the codebooks as well.
  template <typename Memory>
  void quantize_keys(Memory& m, const context_type& context) const {
    m.key.resize(codebooks_.size());
    m.coded.resize(m.k.rows(), m.k.cols());
    const context_type visible = m.kept.visible(context);
    for (index_t h = 0; h < options_.heads; ++h)
      codebooks_[as_size(h)].forward(key_part(std::as_const(m.k).map(), h), key_part(m.coded.map(), h),
                                     m.key[as_size(h)], visible);
  }

  template <typename Memory>
  detail::attention_heads<Scalar, Memory> heads_of(Memory& m, const context_type& context) const {
    return {options_, codebooks_, m, context};
  }

  template <typename Memory>
  void attend(Memory& m, const context_type& context) const {
    m.biases.resize(2, key_columns());
    kernel::copy_scaled(scale(), content_bias_.data(), m.biases.row(0), key_columns());
    kernel::copy_scaled(scale(), position_bias_.data(), m.biases.row(1), key_columns());
    heads_of(m, context).forward(std::same_as<Memory, tape>);
  }

  void attend_backward(tape& t) {
    t.dk.resize(t.q.rows(), key_columns());
    const auto heads = heads_of(t, t.context);
    heads.backward(features_.rows());
    t.drelative.set_zero(features_.rows(), key_columns());
    for (index_t task = 0; task < heads.tasks(); ++task) {
      const Scalar* part = t.parts.row(task);
      const index_t dk = options_.key_width, first = task % options_.heads * dk;
      kernel::add_scaled(scale(), part, content_bias_.gradient().data() + first, dk);
      kernel::add_scaled(scale(), part + dk, position_bias_.gradient().data() + first, dk);
      for (index_t d = 0; d < features_.rows(); ++d)
        kernel::add_scaled(scale(), part + (2 + d) * dk, t.drelative.row(d) + first, dk);
    }
    if (relative_.is_learned()) linear_backward_weight(features_, relative_, t.drelative.map(), 0, key_columns());
  }

  quantized_attention_options options_;
  unit_norm<Scalar> norm_;
  matrix<Scalar> features_;  ///< [M+1,D]
  parameter<Scalar> query_, key_, value_, gate_, relative_, output_, content_bias_, position_bias_;
  std::vector<key_quantizer> codebooks_;
};

}  // namespace sluice::inline SLUICE_ISA
