/// A running summary of a sequence: every channel is a moving average of its own decay.
///
///   s_t = a * s_{t-1} + (1 - a) * x_t   channel by channel, a = sigmoid(decay) [D], s = 0 before a sequence
///   ds_t = dy_t + a * ds_{t+1}    dx_t = (1 - a) * ds_t    da = sum over t of ds_t * (s_{t-1} - x_t)
///
/// Sequences are those of the context (sequences, or groups). Hidden tokens leave the average as it is: padding gets zero, a
/// token with NaN gets NaN. Causal; gradients are exact; tasks are sequences, each in order of tokens. Initial decay: a
/// from 0.5 to 0.999 over the channels, so that some forget at once and some late. Parameter: "decay".
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/layer/call_checks.hpp>
#include <sluice/layer/kept_rows.hpp>
#include <sluice/layer/mixture_layer.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class averaged_memory {
public:
  using scalar = Scalar;
  using context_type = routing_context<Scalar>;
  static constexpr bool causal = true;
  static constexpr bool mixes_tokens = true;

  struct workspace {
    kept_rows<Scalar> kept;
    matrix_buffer<Scalar> averages;
    buffer<Scalar> kept_share;  ///< a [D]
    detail::forward_record record;
  };
  struct tape : workspace {
    matrix_buffer<Scalar> dshare;  ///< of each sequence: da [D], and ds on its way [D]
    context_type context;

    Scalar loss() const { return 0; }
  };

  /// Throws std::invalid_argument unless D >= 1.
  explicit averaged_memory(index_t width) {
    if (width < 1) throw_invalid("averaged_memory needs D >= 1, not ", width);
    decay_ = {{width}, parameter_role::vector};
    set_decays();
  }

  index_t inputs() const noexcept { return decay_.rows(); }
  index_t outputs() const noexcept { return decay_.rows(); }

  /// Inference: y [T,D] is overwritten; y may be x. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, workspace& ws, const context_type& context = {}) const {
    run(x, y, ws, context);
  }
  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  /// What the context refers to must live until backward has returned.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t, const context_type& context) const {
    run(x, y, t, context);
    t.context = context;
    t.record.keep(this);
  }

  /// Writes dx [T,D] and adds the gradient of the decays, for the last training forward call of this tape.
  void backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    t.record.validate(this);
    detail::check_backward<averaged_memory, Scalar>(*this, dy, dx, t.kept.rows());
    ensure_gradients(*this);
    const auto gradient = t.kept.of_gradient(dy, t.context.executor);
    const index_t D = inputs(), sequences = t.context.sequence_count();
    t.dshare.set_zero(sequences, 2 * D);
    for_each_sequence(t.context, dy.rows(), [&](index_t s, index_t begin, index_t end) {
      Scalar *da = t.dshare.row(s), *ds = da + D;
      for (index_t i = end - 1; i >= begin; --i) {
        Scalar* d = dx.data() + i * dx.outerStride();
        if (!t.kept.counts(i)) {
          std::fill_n(d, D, Scalar(0));
          continue;
        }
        const Scalar *x = t.kept.x().data() + i * D, *before = i > begin ? t.averages.row(i - 1) : nullptr;
        for (index_t c = 0; c < D; ++c) {
          ds[c] += gradient(i, c);
          da[c] += ds[c] * ((before == nullptr ? Scalar(0) : before[c]) - x[c]);
          d[c] = (1 - t.kept_share[c]) * ds[c];
          ds[c] *= t.kept_share[c];
        }
      }
    });
    for (index_t s = 0; s < sequences; ++s)
      for (index_t c = 0; c < D; ++c)
        decay_.gradient()[as_size(c)] += t.dshare(s, c) * t.kept_share[c] * (1 - t.kept_share[c]);
  }

  void after_step(tape&) {}

  template <typename Storage>
  averaged_memory stored_as() const {
    return *this;
  }
  index_t workspace_bytes(index_t rows, bool training = false) const {
    return rows * inputs() * (training ? 3 : 2) * static_cast<index_t>(sizeof(Scalar));
  }

  parameter<Scalar>& decay() noexcept { return decay_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("decay", self.decay_);
  }

private:
  void set_decays() {
    const index_t D = inputs();
    decay_.fill([&](index_t c) {
      const double along = D == 1 ? 0 : static_cast<double>(c) / static_cast<double>(D - 1);
      const double forgotten = 0.5 * std::pow(0.002, along);  // 1 - a, from 0.5 to 0.001
      return static_cast<Scalar>(std::log((1 - forgotten) / forgotten));
    });
  }

  template <typename F>
  void for_each_sequence(const context_type& c, index_t tokens, F&& f) const {
    c.executor.for_work(tokens * inputs()).parallel_for(c.sequence_count(), [&](index_t s) {
      const token_range range = c.sequence(s, tokens);
      f(s, range.begin, range.end);
    });
  }

  void run(tokens_in<Scalar> x, tokens_out<Scalar> y, workspace& m, const context_type& context) const {
    detail::check_forward<averaged_memory, Scalar>(*this, x, y, context);
    m.record.forget();
    m.kept.keep(x, context);
    const index_t D = inputs();
    m.kept_share.resize(D);
    for (index_t c = 0; c < D; ++c) m.kept_share[c] = 1 / (1 + std::exp(-decay_.value()[as_size(c)]));
    m.averages.resize(x.rows(), D);
    for_each_sequence(context, x.rows(), [&](index_t, index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) {
        Scalar *s = m.averages.row(i), *to = y.data() + i * y.outerStride();
        const Scalar* seen = m.kept.x().data() + i * D;
        const bool counts = m.kept.counts(i);
        for (index_t c = 0; c < D; ++c) {
          const Scalar before = i > begin ? m.averages(i - 1, c) : Scalar(0);
          s[c] = counts ? m.kept_share[c] * before + (1 - m.kept_share[c]) * seen[c] : before;
          to[c] = counts ? s[c] : context.is_padding(i) ? Scalar(0) : quiet_nan<Scalar>();
        }
      }
    });
  }

  parameter<Scalar> decay_;
};

}  // namespace sluice::inline SLUICE_ISA
