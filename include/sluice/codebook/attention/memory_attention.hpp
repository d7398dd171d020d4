/// Attention over a quantised running summary, gated against the token itself: a reading of LongVQ.
///
///   s = averaged_memory(x)      every channel a moving average                 (codebook/attention/averaged_memory.hpp)
///   a = quantized_attention(s)  keys are codes, a long past costs as much as its codes; a local window key by key
///   g = sigmoid(W x + b)        y = g * a + (1 - g) * x
///
/// A reading: of LongVQ only the abstract was at hand, which says that a structured memory is quantised, so that attention
/// over it has linear cost, and joined with local attention by a gate; which projections are quantised, and the form of
/// the gate, are ours. The paper's exact form has its name when it is known. With as many codes as keys it is ordinary
/// attention over s. Causal: codes learn in after_step only, and inference changes nothing.
/// Sequences, hidden tokens, threads: as the parts say. Parameters: "memory", "attention", "gate" [D,D], "gate_bias".
/// Liu et al. 2024, "LongVQ: Long Sequence Modeling with Vector Quantization on Structured Memory".
#pragma once

#include <sluice/codebook/attention/averaged_memory.hpp>
#include <sluice/codebook/attention/quantized_attention.hpp>

#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class memory_attention {
public:
  using scalar = Scalar;
  using context_type = routing_context<Scalar>;
  static constexpr bool causal = true;
  static constexpr bool mixes_tokens = true;
  static constexpr bool exact_gradient = false;  ///< of the keys

  template <typename Memory, typename Attention>
  struct parts {
    Memory memory;
    Attention attention;
    kept_rows<Scalar> kept;
    matrix_buffer<Scalar> summary, attended, gate;
    detail::forward_record record;
  };
  struct workspace
      : parts<typename averaged_memory<Scalar>::workspace, typename quantized_attention<Scalar>::workspace> {};
  struct tape : parts<typename averaged_memory<Scalar>::tape, typename quantized_attention<Scalar>::tape> {
    context_type context;
    matrix_buffer<Scalar> dattended, dgate, dsummary;

    Scalar loss() const { return this->attention.loss(); }
  };

  explicit memory_attention(index_t width, const quantized_attention_options& o = {})
      : memory_(width),
        attention_(width, o),
        gate_({width, width}, parameter_role::weight,
              initial_values::normal(1 / std::sqrt(static_cast<double>(width)))),
        gate_bias_({width}, parameter_role::vector) {}

  index_t inputs() const noexcept { return gate_.cols(); }
  index_t outputs() const noexcept { return gate_.cols(); }

  /// Inference: y [T,D] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, workspace& ws, const context_type& context = {}) const {
    run(x, y, ws, context);
  }
  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  /// What the context refers to must live until after_step has returned.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t, const context_type& context) const {
    run(x, y, t, context);
    t.context = context;
    t.record.keep(this);
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    t.record.validate(this);
    detail::check_backward<memory_attention, Scalar>(*this, dy, dx, t.kept.rows());
    ensure_gradients(*this);
    const auto gradient = t.kept.of_gradient(dy, t.context.executor);
    t.dattended.resize(dy.rows(), dy.cols());
    t.dgate.resize(dy.rows(), dy.cols());
    t.dsummary.resize(dy.rows(), dy.cols());
    for (index_t i = 0; i < dy.rows(); ++i)
      for (index_t c = 0; c < dy.cols(); ++c) {
        const Scalar g = t.gate(i, c), d = gradient(i, c);
        t.dattended(i, c) = d * g;
        t.dgate(i, c) = t.kept.counts(i) ? d * (t.attended(i, c) - t.kept.x()(i, c)) * g * (1 - g) : Scalar(0);
      }
    attention_.backward(t.dattended.map(), t.dsummary.map(), t.attention);
    memory_.backward(t.dsummary.map(), dx, t.memory);
    linear_backward(t.kept.x(), gate_, std::as_const(t.dgate).map(), dx, t.context.executor);
    add_column_sums(std::as_const(t.dgate).map(), gate_bias_.gradient());
    for (index_t i = 0; i < dy.rows(); ++i)
      for (index_t c = 0; c < dy.cols(); ++c) dx(i, c) += gradient(i, c) * (1 - t.gate(i, c));
  }

  void after_step(tape& t) { attention_.after_step(t.attention); }

  template <typename Storage>
  memory_attention stored_as() const {
    return *this;
  }
  index_t workspace_bytes(index_t rows, bool training = false) const {
    return memory_.workspace_bytes(rows, training) + attention_.workspace_bytes(rows, training) +
           rows * inputs() * (training ? 7 : 4) * static_cast<index_t>(sizeof(Scalar));
  }

  quantized_attention<Scalar>& attention() noexcept { return attention_; }
  averaged_memory<Scalar>& memory() noexcept { return memory_; }
  parameter<Scalar>& gate() noexcept { return gate_; }
  parameter<Scalar>& gate_bias() noexcept { return gate_bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("memory", self.memory_);
    visit("attention", self.attention_);
    visit("gate", self.gate_);
    visit("gate_bias", self.gate_bias_);
  }

private:
  template <typename Memory>
  void run(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context) const {
    detail::check_forward<memory_attention, Scalar>(*this, x, y, context);
    m.record.forget();
    m.kept.keep(x, context);
    m.summary.resize(x.rows(), inputs());
    m.attended.resize(x.rows(), inputs());
    m.gate.resize(x.rows(), inputs());
    // What is hidden here shows as padding or NaN in the summary, and is hidden there too.
    memory_.forward(x, m.summary.map(), m.memory, context);
    attention_.forward(std::as_const(m.summary).map(), m.attended.map(), m.attention, context);
    linear_forward(m.kept.x(), gate_, m.gate.map(), context.executor);
    for (index_t i = 0; i < x.rows(); ++i)
      for (index_t c = 0; c < x.cols(); ++c) {
        Scalar& g = m.gate(i, c);
        g = 1 / (1 + std::exp(-(g + gate_bias_.data()[c])));
        y(i, c) = g * m.attended(i, c) + (1 - g) * m.kept.x()(i, c);
      }
  }

  averaged_memory<Scalar> memory_;
  quantized_attention<Scalar> attention_;
  parameter<Scalar> gate_;
  parameter<Scalar> gate_bias_;
};

}  // namespace sluice::inline SLUICE_ISA
