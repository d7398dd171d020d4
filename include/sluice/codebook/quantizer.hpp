/// What every quantiser is: a layer whose output is a code, and the code's number.
///
///   x [T,D] -> ids [T,M] -> y [T,D]          M numbers a token: one, or one a stage or part
///
///   encode(x, ids, workspace)   decode(ids, y, workspace)   and the calls of a layer: forward, backward, after_step
///
/// A class of your own derives from quantizer_base, as layers derive from layer_decorator:
///
///   class rounding : public quantizer_base<rounding, float> {
///     friend quantizer_base<rounding, float>;
///     void encode_rows(x, ids, memory, context) const;       // ids of every row
///     void decode_rows(ids, y, memory, executor) const;      // rows that begin with no_code may become anything
///     void assign(tape, context) const;                      // training: from tape.kept.x() to tape.ids
///     void quantize(tape, y, context) const;                 // and, with the ids of hidden tokens gone, y and tape.value
///     void quantize_backward(dy, dx, tape);                  // dx is zero at first; the loss's part is added here too
///   };
///
/// (tests/codebook/quantizer_test.cpp has it whole.) One that makes something of its parameters first, for encode_rows
/// and decode_rows alike, hides prepare(memory, executor). Padding gets no_code and zero, a token that holds NaN gets
/// no_code and NaN; neither reaches a gradient or a statistic: rows of tape.kept.x() and of dy are zero there, and
/// tape.kept.counts(t) says so. y may be x, dx may not be dy. T = 0 is fine. Inference is const and thread-safe, a
/// workspace a thread; equal bits for every executor and thread count. Gradients that pass a choice are estimates
/// (exact_gradient), which check_layer leaves to tests of their formulas.
#pragma once

#include <sluice/kernel/best_code.hpp>
#include <sluice/layer/call_checks.hpp>
#include <sluice/layer/decorator.hpp>
#include <sluice/layer/kept_rows.hpp>
#include <sluice/layer/mixture_layer.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Q>
concept CanEncode = requires(const Q& quantizer, tokens_in<typename Q::scalar> x, tokens_out<index_t> ids,
                             typename Q::workspace& workspace, const typename Q::context_type& context) {
  quantizer.encode(x, ids, workspace, context);
};
template <typename Q>
concept CanDecode = requires(const Q& quantizer, tokens_in<index_t> ids, tokens_out<typename Q::scalar> y,
                             typename Q::workspace& workspace) {
  quantizer.decode(ids, y, workspace);
  { quantizer.code_columns() } -> std::convertible_to<index_t>;
  { quantizer.codes(index_t()) } -> std::convertible_to<index_t>;
};
template <typename Q>
concept Quantizer = TrainableLayer<Q> && CanEncode<Q> && CanDecode<Q>;

/// Derived also has inputs(), code_columns() and codes(column), and outputs() if there are not as many as inputs.
/// OwnMemory is what encode needs, OwnTape what training does.
template <typename Derived, FloatOrDouble Scalar, typename OwnMemory = detail::no_memory, typename OwnTape = OwnMemory>
class quantizer_base {
public:
  using scalar = Scalar;
  using context_type = routing_context<Scalar>;
  static constexpr bool causal = true;
  static constexpr bool exact_gradient = false;  ///< what passes a choice is an estimate

  /// Nothing to learn, unless a quantiser says otherwise.
  static void visit_parameters(auto&, auto&&) {}

  struct workspace : OwnMemory {
    matrix_buffer<index_t> ids;
    detail::forward_record record;
  };
  struct tape : OwnTape {
    kept_rows<Scalar> kept;
    matrix_buffer<index_t> ids;  ///< [T,M]
    context_type context;
    Scalar value = 0;            ///< of all losses
    detail::forward_record record;

    Scalar loss() const { return value; }
  };

  index_t outputs() const noexcept { return self().inputs(); }

  /// ids [T,M] of x [T,D]. Throws std::invalid_argument if shapes do not fit.
  void encode(tokens_in<Scalar> x, tokens_out<index_t> ids, workspace& ws, const context_type& context = {}) const {
    if (x.cols() != self().inputs() || ids.rows() != x.rows() || ids.cols() != self().code_columns())
      throw_invalid("the quantiser encodes [T, ", self().inputs(), "] as [T, ", self().code_columns(), "]; x is [",
                    x.rows(), ", ", x.cols(), "] and ids [", ids.rows(), ", ", ids.cols(), "]");
    check_context(context, x.rows());
    prepare_call(ws, context.executor);
    encode_prepared(x, ids, ws, context);
  }

  /// y [T,D] of ids [T,M]; rows that begin with no_code become zero. Throws std::invalid_argument for any other number
  /// that is no code.
  void decode(tokens_in<index_t> ids, tokens_out<Scalar> y, workspace& ws, const executor_ref& executor = {}) const {
    if (ids.cols() != self().code_columns() || y.rows() != ids.rows() || y.cols() != self().outputs())
      throw_invalid("the quantiser decodes [T, ", self().code_columns(), "] to [T, ", self().outputs(), "]; ids are [",
                    ids.rows(), ", ", ids.cols(), "] and y is [", y.rows(), ", ", y.cols(), "]");
    for (index_t t = 0; t < ids.rows(); ++t)
      for (index_t m = 0; m < ids.cols(); ++m)
        if (ids(t, m) != no_code && (ids(t, m) < 0 || ids(t, m) >= self().codes(m)))
          throw_invalid("token ", t, " has the code ", ids(t, m), " in column ", m, ", which has ", self().codes(m));
    prepare_call(ws, executor);
    decode_prepared(ids, y, ws, executor);
  }

  /// The parts of encode and decode, for quantisers that hold this one: after one prepare_call, as many of the others
  /// as the call needs, with shapes and codes that fit.
  void prepare_call(workspace& ws, const executor_ref& executor) const {
    ws.record.check_values(self());
    self().prepare(ws, executor);
  }
  void encode_prepared(tokens_in<Scalar> x, tokens_out<index_t> ids, workspace& ws, const context_type& context) const {
    self().encode_rows(x, ids, ws, context);
    for (index_t t = 0; t < x.rows(); ++t)
      if (context.is_padding(t) || any_nan(x.data() + t * x.outerStride(), x.cols())) ids.row(t).setConstant(no_code);
  }
  void decode_prepared(tokens_in<index_t> ids, tokens_out<Scalar> y, workspace& ws,
                       const executor_ref& executor) const {
    self().decode_rows(ids, y, ws, executor);
    for (index_t t = 0; t < ids.rows(); ++t)
      if (is_hidden(ids, t)) y.row(t).setZero();
  }

  /// Inference: y [T,D] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, workspace& ws, const context_type& context = {}) const {
    detail::check_forward<Scalar>({self().inputs(), self().outputs()}, x, y, context);
    ws.record.forget();
    ws.ids.resize(x.rows(), self().code_columns());
    prepare_call(ws, context.executor);
    encode_prepared(x, ws.ids.map(), ws, context);
    self().decode_rows(ws.ids.map(), y, ws, context.executor);
    hide(ws.ids.map(), y, context);
  }

  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  /// What the context refers to must live until after_step has returned.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t, const context_type& context) const {
    detail::check_forward<Scalar>({self().inputs(), self().outputs()}, x, y, context);
    t.record.forget();
    t.record.check_values(self());
    t.context = context;
    t.kept.keep(x, context);
    t.ids.resize(x.rows(), self().code_columns());
    self().assign(t, context);
    for (index_t token = 0; token < x.rows(); ++token)
      if (!t.kept.counts(token)) std::fill_n(t.ids.row(token), t.ids.cols(), no_code);
    self().quantize(t, y, context);
    hide(t.ids.map(), y, context);
    t.record.keep(this);
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    t.record.validate(this);
    detail::check_backward<Scalar>({self().inputs(), self().outputs()}, dy, dx, t.kept.rows());
    ensure_gradients(self());
    t.kept.of_gradient(dy, t.context.executor);
    dx.setZero();
    self().quantize_backward(t.kept.gradient(), dx, t);
  }

  void after_step(tape&) {}

  /// f(table, code) for every code that the last after_step of this tape gave to others, wherever in the quantiser it
  /// is.
  template <typename F>
  void for_each_replaced(tape&, F&&) {}

  /// The quantiser as it is: another storage is a matter of experts.
  template <typename Storage>
  Derived stored_as() const {
    return self();
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    const auto number = static_cast<index_t>(sizeof(Scalar));
    return rows * (self().code_columns() * static_cast<index_t>(sizeof(index_t)) +
                   (training ? (self().inputs() + self().outputs()) * number : 0));
  }

protected:
  void prepare(OwnMemory&, const executor_ref&) const {}

private:
  Derived& self() noexcept { return static_cast<Derived&>(*this); }
  const Derived& self() const noexcept { return static_cast<const Derived&>(*this); }

  /// Later columns of a token that is not hidden may be no_code too: stages that are left out.
  static bool is_hidden(tokens_in<index_t> ids, index_t t) { return ids(t, 0) == no_code; }
  static void hide(tokens_in<index_t> ids, tokens_out<Scalar> y, const context_type& context) {
    for (index_t t = 0; t < ids.rows(); ++t)
      if (is_hidden(ids, t)) y.row(t).setConstant(context.is_padding(t) ? Scalar(0) : quiet_nan<Scalar>());
  }
};

/// What an optimiser remembers of codes that were replaced is about other vectors: it forgets them. After after_step.
template <typename Optimizer, Quantizer Q>
void forget_replaced(Optimizer& optimizer, Q& quantizer, typename Q::tape& tape) {
  quantizer.for_each_replaced(tape, [&](auto& table, index_t code) { optimizer.forget_row(table, code); });
}

}  // namespace sluice::inline SLUICE_ISA
