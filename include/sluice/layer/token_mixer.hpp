/// What layers share in which a token's output depends on other tokens: attention, averages, sums.
///
///   x [T,D] -> mix -> y [T,D']            padding gets zero, a token that holds NaN gets NaN; neither is seen by others
///
///   class running_sum : public token_mixer<running_sum, float> {
///     friend token_mixer<running_sum, float>;
///   public:
///     static constexpr bool causal = true;
///     index_t inputs() const noexcept;                           // and outputs(), if there are not as many as inputs
///     static void visit_parameters(self, visit);
///   private:
///     void mix(x, y, memory, context) const;                     // rows of x that are hidden are zero; theirs of y are
///     void mix_backward(dy, dx, tape);                           // free.  As in backward: dx is zero at first
///   };
///
/// (tests/layer/token_mixer_test.cpp has it whole.) Memory is the workspace or the tape, so mix is a template;
/// memory.kept.counts(t) says whether a token is seen, memory.kept.visible(context) is a context for parts that hide
/// the same tokens, tape.kept.x() is x as mix saw it. A layer may name two structs of its own memory, for inference and
/// for training; the latter's loss(), if it has one, is the tape's. Sequences are those of the context (sequences, or
/// groups). y may be x, dx may not be dy; T = 0 is fine. Inference is const, a workspace a thread.
#pragma once

#include <sluice/layer/call_checks.hpp>
#include <sluice/layer/decorator.hpp>
#include <sluice/layer/kept_rows.hpp>

namespace sluice::inline SLUICE_ISA {

template <typename Derived, FloatOrDouble Scalar, typename OwnWorkspace = detail::no_memory,
          typename OwnTape = OwnWorkspace>
class token_mixer {
public:
  using scalar = Scalar;
  using context_type = routing_context<Scalar>;
  static constexpr bool mixes_tokens = true;

  struct workspace : OwnWorkspace {
    kept_rows<Scalar> kept;
    detail::forward_record record;
  };
  struct tape : OwnTape {
    kept_rows<Scalar> kept;
    context_type context;
    detail::forward_record record;

    Scalar loss() const {
      if constexpr (requires(const OwnTape& own) { own.loss(); })
        return OwnTape::loss();
      else
        return 0;
    }
  };

  index_t outputs() const noexcept { return self().inputs(); }

  /// Inference: y [T,D'] is overwritten. Throws std::invalid_argument if shapes do not fit.
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
    detail::check_backward<Scalar>({self().inputs(), self().outputs()}, dy, dx, t.kept.rows());
    ensure_gradients(self());
    const auto gradient = t.kept.of_gradient(dy, t.context.executor);
    dx.setZero();
    self().mix_backward(gradient, dx, t);
    for (index_t i = 0; i < dx.rows(); ++i)
      if (!t.kept.counts(i)) dx.row(i).setZero();
  }

  void after_step(tape&) {}

  /// The layer as it is: another storage is a matter of experts.
  template <typename Storage>
  Derived stored_as() const {
    return self();
  }

protected:
  /// All of a forward call around mix(x without what is hidden), for layers that have another call than forward.
  template <typename Memory, typename Mix>
  void run(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context, Mix&& mix) const {
    detail::check_forward<Scalar>({self().inputs(), self().outputs()}, x, y, context);
    m.record.forget();
    m.record.check_values(self());
    m.kept.keep(x, context);
    mix(m.kept.x());
    for (index_t t = 0; t < y.rows(); ++t)
      if (!m.kept.counts(t)) y.row(t).setConstant(context.is_padding(t) ? Scalar(0) : quiet_nan<Scalar>());
  }

private:
  Derived& self() noexcept { return static_cast<Derived&>(*this); }
  const Derived& self() const noexcept { return static_cast<const Derived&>(*this); }

  template <typename Memory>
  void run(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context) const {
    run(x, y, m, context, [&](tokens_in<Scalar> seen) { self().mix(seen, y, m, context); });
  }
};

}  // namespace sluice::inline SLUICE_ISA
