/// Attention over a quantised running summary, gated against the token itself: a reading of LongVQ.
///
///   s = averaged_memory(x)      every channel a moving average                 (codebook/attention/averaged_memory.hpp)
///   a = quantized_attention(s)  keys are codes, a long past costs as much as its codes; a local window key by key
///   g = sigmoid(W x + b)        y = g * a + (1 - g) * x
///
/// A reading: of LongVQ only the abstract was at hand, which says that a structured memory is quantised, so that
/// attention over it has linear cost, and joined with local attention by a gate; which projections are quantised, and
/// the form of the gate, are ours. The paper's exact form has its name when it is known. With as many codes as keys it
/// is ordinary attention over s. Causal: codes learn in after_step only, and inference changes nothing.
/// Sequences, hidden tokens, threads: as the parts say. Parameters: "memory", "attention", "gate" [D,D], "gate_bias".
/// Liu et al. 2024, "LongVQ: Long Sequence Modeling with Vector Quantization on Structured Memory".
#pragma once

#include <sluice/codebook/attention/averaged_memory.hpp>
#include <sluice/codebook/attention/quantized_attention.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar, typename Memory, typename Attention>
struct memory_attention_parts {
  Memory memory;
  Attention attention;
  matrix_buffer<Scalar> summary, attended, gate;
};
template <typename Scalar>
using memory_attention_workspace = memory_attention_parts<Scalar, typename averaged_memory<Scalar>::workspace,
                                                          typename quantized_attention<Scalar>::workspace>;
template <typename Scalar>
struct memory_attention_tape : memory_attention_parts<Scalar, typename averaged_memory<Scalar>::tape,
                                                      typename quantized_attention<Scalar>::tape> {
  matrix_buffer<Scalar> dattended, dgate, dsummary;

  Scalar loss() const { return this->attention.loss(); }
};

}  // namespace detail

template <FloatOrDouble Scalar>
class memory_attention
    : public token_mixer<memory_attention<Scalar>, Scalar, detail::memory_attention_workspace<Scalar>,
                         detail::memory_attention_tape<Scalar>> {
  using base = token_mixer<memory_attention, Scalar, detail::memory_attention_workspace<Scalar>,
                           detail::memory_attention_tape<Scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::tape;
  static constexpr bool causal = true;
  static constexpr bool exact_gradient = false;  ///< of the keys

  explicit memory_attention(index_t width, const quantized_attention_options& o = {})
      : memory_(width),
        attention_(width, o),
        gate_({width, width}, parameter_role::weight,
              initial_values::normal(1 / std::sqrt(static_cast<double>(width)))),
        gate_bias_({width}, parameter_role::vector) {}

  index_t inputs() const noexcept { return gate_.cols(); }

  void after_step(tape& t) {
    t.record.validate(this);
    attention_.after_step(t.attention);
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
  void mix(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context) const {
    const context_type visible = m.kept.visible(context);
    m.summary.resize(x.rows(), inputs());
    m.attended.resize(x.rows(), inputs());
    m.gate.resize(x.rows(), inputs());
    memory_.forward(x, m.summary.map(), m.memory, visible);
    attention_.forward(std::as_const(m.summary).map(), m.attended.map(), m.attention, visible);
    linear_forward(x, gate_, m.gate.map(), context.executor);
    add_to_rows(m.gate.map(), gate_bias_);
    kernel::logistic(m.gate.data(), m.gate.data(), m.gate.size());
    for (index_t i = 0; i < x.rows(); ++i)
      for (index_t c = 0; c < x.cols(); ++c) y(i, c) = m.gate(i, c) * m.attended(i, c) + (1 - m.gate(i, c)) * x(i, c);
  }

  void mix_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    const auto x = t.kept.x();
    t.dattended.resize(dy.rows(), dy.cols());
    t.dgate.resize(dy.rows(), dy.cols());
    t.dsummary.resize(dy.rows(), dy.cols());
    for (index_t i = 0; i < dy.rows(); ++i)
      for (index_t c = 0; c < dy.cols(); ++c) {
        const Scalar g = t.gate(i, c), d = dy(i, c);
        t.dattended(i, c) = d * g;
        t.dgate(i, c) = d * (t.attended(i, c) - x(i, c)) * g * (1 - g);
      }
    attention_.backward(t.dattended.map(), t.dsummary.map(), t.attention);
    memory_.backward(t.dsummary.map(), dx, t.memory);
    linear_backward(x, gate_, std::as_const(t.dgate).map(), dx, t.context.executor);
    add_column_sums(std::as_const(t.dgate).map(), gate_bias_.gradient());
    for (index_t i = 0; i < dy.rows(); ++i)
      for (index_t c = 0; c < dy.cols(); ++c) dx(i, c) += dy(i, c) * (1 - t.gate(i, c));
  }

  averaged_memory<Scalar> memory_;
  quantized_attention<Scalar> attention_;
  parameter<Scalar> gate_;
  parameter<Scalar> gate_bias_;
};

}  // namespace sluice::inline SLUICE_ISA
