/// What training adds to the scores of a token-choice router before it chooses.
///
///   no_noise        L' = L
///   gaussian_noise  L' = L + (std / E) z              V-MoE: Riquelme et al. 2021, arXiv:2106.05974
///   learned_noise   L' = L + s z, s = softplus(x Wn^T) + epsilon       Shazeer et al. 2017, arXiv:1701.06538, eq. 4
///   logistic_noise  L' = L + scale (zeta - zeta')   MoMa: Lin et al. 2024, arXiv:2407.21770
///   gumbel_noise    L' = L + zeta                   the largest L' is a draw from softmax(L)
///   uniform_noise   L' = L + scale u, u in (0, 1)   Chen et al. 2022, arXiv:2208.02813
///
/// z [T,E] are standard normal draws at noise_site, zeta and u Gumbel and uniform draws there, position t*E + e.
/// Without training nothing is added. The published learned form has epsilon = 0; 0.01 is that of the widely used port.
/// Wn starts at zero.
/// Gradients of L' reach L as they are; those of L' and of s reach Wn: d(x Wn^T) = sigmoid(x Wn^T) (ds + z dL').
///
/// A noise of your own has a tape and these:
///   apply(x, context, seen, tape)                    fills seen.noisy_storage and seen.noise_std, or says has_noise = false
///   backward(x, context, seen, dnoisy, dstd, tape, dx)    called where there was noise
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/logistic.hpp>

#include <limits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

inline constexpr random_site noise_site("selection noise");

template <typename N, typename Scalar>
concept NoisePolicy = HasTape<N> &&
    requires(N& noise, tokens_in<Scalar> x, const routing_context<Scalar>& context, score_signals<Scalar>& seen,
             const matrix_buffer<Scalar>& d, typename N::tape& tape, tokens_out<Scalar> dx) {
      std::as_const(noise).apply(x, context, seen, tape);
      noise.backward(x, context, seen, d, d, tape, dx);
    };

/// static_assert(explain_noise<my_noise, float>()): the first error says what is asked for.
template <typename N, typename Scalar>
consteval bool explain_noise() {
  static_assert(NoisePolicy<N, Scalar>,
                "sluice: noise needs a member type `tape`, `void apply(tokens_in<scalar> x, const "
                "routing_context<scalar>&, score_signals<scalar>& seen, tape&) const` and `void backward(x, context, "
                "seen, dnoisy, dstd, tape&, tokens_out<scalar> dx)`, for the scalar of the gate");
  return NoisePolicy<N, Scalar>;
}

namespace detail {
inline constexpr index_t noise_block = 1024;  // draws a task: about 50 microseconds of work
}  // namespace detail

template <FloatOrDouble Scalar>
struct no_noise {
  struct tape {};

  void apply(tokens_in<Scalar>, const routing_context<Scalar>&, score_signals<Scalar>& seen, tape&) const {
    seen.has_noise = false;
    seen.sigma = 0;
    seen.noise_std.clear();
  }
  void backward(tokens_in<Scalar>, const routing_context<Scalar>&, const score_signals<Scalar>&,
                const matrix_buffer<Scalar>&, const matrix_buffer<Scalar>&, tape&, tokens_out<Scalar>) {}
};

template <FloatOrDouble Scalar>
class gaussian_noise : public no_noise<Scalar> {
public:
  using typename no_noise<Scalar>::tape;

  gaussian_noise() : gaussian_noise(Scalar(1)) {}
  /// Throws std::invalid_argument if the deviation is negative.
  explicit gaussian_noise(Scalar std) : std_(std) {
    if (is_nan(std) || std < 0 || std > (std::numeric_limits<Scalar>::max)() / 2)
      throw_invalid("gaussian_noise needs a finite deviation >= 0, not ", std);
  }

  void apply(tokens_in<Scalar> x, const routing_context<Scalar>& context, score_signals<Scalar>& seen, tape& t) const {
    no_noise<Scalar>::apply(x, context, seen, t);
    if (!context.training || std_ == Scalar(0)) return;
    const index_t experts = seen.clean.cols();
    seen.has_noise = true;
    seen.sigma = std_ / static_cast<Scalar>(experts);
    seen.noisy_storage.resize(seen.clean.rows(), experts);
    context.executor.parallel_blocks(seen.clean.size(), detail::noise_block, 100, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i)
        seen.noisy_storage.data()[i] =
            seen.clean.data()[i] + seen.sigma * static_cast<Scalar>(context.random.normal(noise_site, i));
    });
  }

private:
  Scalar std_;
};

template <FloatOrDouble Scalar>
class gumbel_noise : public no_noise<Scalar> {
public:
  using typename no_noise<Scalar>::tape;

  void apply(tokens_in<Scalar> x, const routing_context<Scalar>& context, score_signals<Scalar>& seen, tape& t) const {
    no_noise<Scalar>::apply(x, context, seen, t);
    if (!context.training) return;
    seen.has_noise = true;
    seen.noisy_storage.resize(seen.clean.rows(), seen.clean.cols());
    context.executor.parallel_blocks(seen.clean.size(), detail::noise_block, 100, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i)
        seen.noisy_storage.data()[i] = seen.clean.data()[i] + static_cast<Scalar>(context.random.gumbel(noise_site, i));
    });
  }
};

template <FloatOrDouble Scalar>
class uniform_noise : public no_noise<Scalar> {
public:
  using typename no_noise<Scalar>::tape;

  uniform_noise() : uniform_noise(Scalar(1)) {}
  /// Throws std::invalid_argument if the scale is negative.
  explicit uniform_noise(Scalar scale) : scale_(scale) {
    if (is_nan(scale) || scale < 0 || scale > (std::numeric_limits<Scalar>::max)() / 2)
      throw_invalid("uniform_noise needs a finite scale >= 0, not ", scale);
  }

  void apply(tokens_in<Scalar> x, const routing_context<Scalar>& context, score_signals<Scalar>& seen, tape& t) const {
    no_noise<Scalar>::apply(x, context, seen, t);
    if (!context.training || scale_ == Scalar(0)) return;
    seen.has_noise = true;
    seen.noisy_storage.resize(seen.clean.rows(), seen.clean.cols());
    context.executor.parallel_blocks(seen.clean.size(), detail::noise_block, 20, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i)
        seen.noisy_storage.data()[i] =
            seen.clean.data()[i] + scale_ * static_cast<Scalar>(context.random.uniform(noise_site, i));
    });
  }

private:
  Scalar scale_;
};

/// The difference of two Gumbel draws, at noise_site position 2 (t*E + e) and the next: sigmoid(L' / tau) is then a
/// sample of a relaxed coin. With a temperature tau the logits are those over tau, and scale is 1 / tau.
template <FloatOrDouble Scalar>
class logistic_noise : public no_noise<Scalar> {
public:
  using typename no_noise<Scalar>::tape;

  logistic_noise() : logistic_noise(Scalar(1)) {}
  /// Throws std::invalid_argument if the scale is negative.
  explicit logistic_noise(Scalar scale) : scale_(scale) {
    if (is_nan(scale) || scale < 0 || scale > (std::numeric_limits<Scalar>::max)() / 2)
      throw_invalid("logistic_noise needs a finite scale >= 0, not ", scale);
  }

  void apply(tokens_in<Scalar> x, const routing_context<Scalar>& context, score_signals<Scalar>& seen,
             tape& t) const {
    no_noise<Scalar>::apply(x, context, seen, t);
    if (!context.training || scale_ == Scalar(0)) return;
    seen.has_noise = true;
    seen.noisy_storage.resize(seen.clean.rows(), seen.clean.cols());
    context.executor.parallel_blocks(seen.clean.size(), detail::noise_block, 100, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) {
        const double difference =
            context.random.gumbel(noise_site, 2 * i) - context.random.gumbel(noise_site, 2 * i + 1);
        seen.noisy_storage.data()[i] = seen.clean.data()[i] + scale_ * static_cast<Scalar>(difference);
      }
    });
  }

private:
  Scalar scale_;
};

template <FloatOrDouble Scalar>
class learned_noise {
public:
  struct tape {
    matrix_buffer<Scalar> raw;     ///< x Wn^T
    matrix_buffer<Scalar> normal;  ///< the draws
    matrix_buffer<Scalar> draw;    ///< gradient of raw
  };

  /// Throws std::invalid_argument unless D >= 1, E >= 1 and epsilon >= 0.
  learned_noise(index_t inputs, index_t experts, Scalar epsilon = Scalar(0.01)) : epsilon_(epsilon) {
    const bool is_usable = !is_nan(epsilon) && epsilon >= 0 && epsilon <= (std::numeric_limits<Scalar>::max)() / 2;
    if (inputs < 1 || experts < 1 || !is_usable)
      throw_invalid("learned_noise needs D >= 1, E >= 1 and a finite epsilon >= 0, not D = ", inputs, ", E = ", experts,
                    ", epsilon = ", epsilon);
    weight_ = {{experts, inputs}, parameter_role::weight};
  }

  void apply(tokens_in<Scalar> x, const routing_context<Scalar>& context, score_signals<Scalar>& seen, tape& t) const {
    seen.has_noise = context.training;
    seen.sigma = 0;
    seen.noise_std.clear();
    if (!context.training) return;
    const index_t experts = seen.clean.cols();
    for (auto* m : {&t.raw, &t.normal, &seen.noise_std, &seen.noisy_storage}) m->resize(x.rows(), experts);
    linear_forward<Scalar>(x, weight_, t.raw.map(), context.executor);
    context.executor.parallel_blocks(t.raw.size(), detail::noise_block, 100, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) {
        const Scalar raw = t.raw.data()[i];
        const Scalar std = kernel::softplus(raw) + epsilon_;
        const auto z = static_cast<Scalar>(context.random.normal(noise_site, i));
        t.normal.data()[i] = z;
        seen.noise_std.data()[i] = std;
        seen.noisy_storage.data()[i] = seen.clean.data()[i] + z * std;
      }
    });
  }

  /// dnoisy and dstd [T,E] -> gradient of Wn, added into dx.
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const score_signals<Scalar>&,
                const matrix_buffer<Scalar>& dnoisy, const matrix_buffer<Scalar>& dstd, tape& t,
                tokens_out<Scalar> dx) {
    t.draw.resize(t.raw.rows(), t.raw.cols());
    for (index_t i = 0; i < t.raw.size(); ++i) {
      const Scalar slope = kernel::logistic(t.raw.data()[i]);
      t.draw.data()[i] = slope * (dstd.data()[i] + t.normal.data()[i] * dnoisy.data()[i]);
    }
    linear_backward<Scalar>(x, weight_, t.draw.map(), dx, context.executor);
  }

  parameter<Scalar>& weight() noexcept { return weight_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
  }

private:
  Scalar epsilon_;
  parameter<Scalar> weight_;
};

namespace detail {

/// Scores of the gate and the noise, t.seen, of what t.screen does not hide; NaN for tokens that are invalid.
template <typename GateType, typename Noise, typename Tape, typename Scalar = typename GateType::scalar>
void score_screened(const GateType& gate, const Noise& noise, tokens_in<Scalar> x,
                    const routing_context<Scalar>& context, Tape& t) {
  auto& s = t.seen;
  s.clean.resize(x.rows(), gate.experts());
  t.screen.score(
      x, context,
      [&](tokens_in<Scalar> seen) {
        gate.forward(seen, t.screen.visible(context), s.clean.map(), t.gate);
        noise.apply(seen, context, s, t.noise);
      },
      [&](index_t token) { return any_nan(s.noisy().row(token), gate.experts()); }, shows_nan<GateType>);
  t.screen.spoil_invalid(s.clean);
  if (s.has_noise) t.screen.spoil_invalid(s.noisy_storage);
}

/// The way back: t.dnoisy, gradients of what was chosen by, to those of the noise, of the gate and of x.
template <typename GateType, typename Noise, typename Tape, typename Scalar = typename GateType::scalar>
void pull_back_screened(GateType& gate, Noise& noise, tokens_in<Scalar> x, const routing_context<Scalar>& context,
                        Tape& t, tokens_out<Scalar> dx) {
  const auto seen = t.screen.of(x);
  t.screen.clear_hidden(t.dnoisy);
  t.dclean = t.dnoisy;
  if (t.seen.has_noise) {
    t.dclean.map() += t.dseen.clean.map();
    t.screen.clear_hidden(t.dclean);
    noise.backward(seen, context, t.seen, t.dnoisy, t.dseen.noise_std, t.noise, dx);
  }
  gate.backward(seen, context, t.dclean.map(), t.gate, dx);
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
