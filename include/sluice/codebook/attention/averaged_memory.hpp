/// A running summary of a sequence: every channel is a moving average of its own decay.
///
///   s_t = a * s_{t-1} + (1 - a) * x_t   channel by channel, a = sigmoid(decay) [D], s = 0 before a sequence
///   ds_t = dy_t + a * ds_{t+1}    dx_t = (1 - a) * ds_t    da = sum over t of ds_t * (s_{t-1} - x_t)
///
/// Sequences are those of the context (sequences, or groups). Hidden tokens leave the average as it is: padding gets
/// zero, a token with NaN gets NaN. Causal; gradients are exact; tasks are sequences, each in order of tokens. Initial
/// decay: a from 0.5 to 0.999 over the channels, so that some forget at once and some late. Parameter: "decay".
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/layer/mixture_layer.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar>
struct averaged_workspace {
  matrix_buffer<Scalar> averages;
  buffer<Scalar> kept_share;  ///< a [D]
};
template <typename Scalar>
struct averaged_tape : averaged_workspace<Scalar> {
  matrix_buffer<Scalar> dshare;  ///< of each sequence: da [D], and ds on its way [D]
};

}  // namespace detail

template <FloatOrDouble Scalar>
class averaged_memory : public token_mixer<averaged_memory<Scalar>, Scalar, detail::averaged_workspace<Scalar>,
                                           detail::averaged_tape<Scalar>> {
  using base = token_mixer<averaged_memory, Scalar, detail::averaged_workspace<Scalar>, detail::averaged_tape<Scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::tape;
  static constexpr bool causal = true;

  /// Throws std::invalid_argument unless D >= 1.
  explicit averaged_memory(index_t width) {
    if (width < 1) throw_invalid("averaged_memory needs D >= 1, not ", width);
    decay_ = {{width}, parameter_role::vector};
    set_decays();
  }

  index_t inputs() const noexcept { return decay_.rows(); }

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

  template <typename Memory>
  void mix(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context) const {
    const index_t D = inputs();
    m.kept_share.resize(D);
    kernel::logistic(decay_.data(), m.kept_share.data(), D);
    m.averages.resize(x.rows(), D);
    for_each_sequence(context, x.rows(), [&](index_t, index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) {
        Scalar *s = m.averages.row(i), *to = y.data() + i * y.outerStride();
        const Scalar* seen = x.data() + i * x.outerStride();
        const bool counts = m.kept.counts(i);
        for (index_t c = 0; c < D; ++c) {
          const Scalar before = i > begin ? m.averages(i - 1, c) : Scalar(0);
          to[c] = s[c] = counts ? m.kept_share[c] * before + (1 - m.kept_share[c]) * seen[c] : before;
        }
      }
    });
  }

  void mix_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    const index_t D = inputs(), sequences = t.context.sequence_count();
    t.dshare.set_zero(sequences, 2 * D);
    for_each_sequence(t.context, dy.rows(), [&](index_t s, index_t begin, index_t end) {
      Scalar *da = t.dshare.row(s), *ds = da + D;
      for (index_t i = end - 1; i >= begin; --i) {
        if (!t.kept.counts(i)) continue;
        Scalar* d = dx.data() + i * dx.outerStride();
        const Scalar *x = t.kept.x().data() + i * D, *before = i > begin ? t.averages.row(i - 1) : nullptr;
        for (index_t c = 0; c < D; ++c) {
          ds[c] += dy(i, c);
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

  parameter<Scalar> decay_;
};

}  // namespace sluice::inline SLUICE_ISA
