/// A selective state-space layer: tokens see each other through states that run along their sequence.
///
///   (u, z) = x W_in^T (+ b_in)   [T,I] each        v = silu(convolution(u) + bias), causal, W taps a channel
///   (r, B, C) = v W_sel^T        [T,R], [T,N], [T,N]      d = softplus(r W_step^T + b_step) [T,I]
///   h_t = exp(d_t A) h_(t-1) + d_t v_t B_t,  A = -exp(log_decay) [I,N]     s_t = sum over n of C_t[n] h_t[.,n] + D v_t
///   y = (s * silu(z)) W_out^T (+ b_out)      [T,D]
///
///   state_space_mixer<float> mixer{D};                              // I = 2 D, N = 16, R = D / 16 upwards, W = 4
///   mixer.forward(x, y, tape, {.training = true, .sequences = borders});    mixer.backward(dy, dx, tape);
///   state_space_cache<float> cache{mixer, 1};                       // ws: a workspace
///   mixer.forward_cached(token, y, cache, ws);                      // and so on: the bits of the whole sequence
///
/// Sequences are those of the context; each begins with states of zero. Hidden tokens (padding, NaN) take a place,
/// where the convolution finds zeros, and states pass over them unchanged; they get zero and NaN. Padding in front of a
/// sequence changes nothing. T = 0 is fine. Inference is const, a workspace a thread and a cache a conversation. Bits
/// are equal for any number of threads; a warm call allocates nothing. Training takes I (12 + N / 16) + 4 N + 2 R + 2 D
/// numbers a token, never [T,I,N]: states are kept before every 32 tokens and found anew between (kernel/state_space/).
/// With normalized_selection r, B and C pass an RMS norm each first (Jamba). Parameters are those of
/// layer/state_space/state_space_weights.hpp.
/// Gu and Dao 2023 (Mamba), arXiv:2312.00752; Lieber et al. 2024 (Jamba), arXiv:2403.19887.
#pragma once

#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/kernel/state_space/causal_convolution.hpp>
#include <sluice/kernel/state_space/scan_backward.hpp>
#include <sluice/layer/state_space/state_space_cache.hpp>
#include <sluice/layer/state_space/state_space_weights.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar>
struct state_space_workspace {
  buffer<token_range> sequences;
  matrix_buffer<Scalar> projected;   ///< u and z, [T,2I]
  matrix_buffer<Scalar> taps;        ///< [W,I]
  matrix_buffer<Scalar> convolved;   ///< v [T,I]
  matrix_buffer<Scalar> selection;   ///< r, B and C as W_sel gives them
  matrix_buffer<Scalar> normalized;  ///< the same behind their norms, if there are any
  std::array<norm_tape<Scalar>, 3> norms;
  matrix_buffer<Scalar> steps;  ///< d [T,I]
  matrix_buffer<Scalar> mixed;  ///< s [T,I]; in inference times silu(z) at last
  kernel::scan_memory<Scalar> scan;
};

template <typename Scalar>
struct state_space_tape : state_space_workspace<Scalar> {
  matrix_buffer<Scalar> sums;   ///< what silu makes v of
  matrix_buffer<Scalar> gated;  ///< s silu(z)
  matrix_buffer<Scalar> dprojected, dconvolved, dselection, dnormalized, dsteps, dmixed;
};

}  // namespace detail

template <FloatOrDouble Scalar>
class state_space_mixer : public token_mixer<state_space_mixer<Scalar>, Scalar, detail::state_space_workspace<Scalar>,
                                             detail::state_space_tape<Scalar>> {
  using base =
      token_mixer<state_space_mixer, Scalar, detail::state_space_workspace<Scalar>, detail::state_space_tape<Scalar>>;
  friend base;
  using rows_in = kernel::scan_rows<const Scalar>;
  using rows_out = kernel::scan_rows<Scalar>;

public:
  using typename base::context_type;
  using typename base::tape;
  using typename base::workspace;
  static constexpr bool causal = true;

  /// Throws std::invalid_argument unless D, N and W are at least 1 and nothing is below 0.
  explicit state_space_mixer(index_t width, const state_space_options& o = {}) : weights_(width, o) {}

  index_t inputs() const noexcept { return weights_.inputs(); }
  index_t channels() const noexcept { return weights_.channels(); }
  index_t states() const noexcept { return weights_.states(); }
  index_t step_rank() const noexcept { return weights_.step_rank(); }
  index_t taps() const noexcept { return weights_.taps(); }
  state_space_weights<Scalar>& weights() noexcept { return weights_; }
  const state_space_weights<Scalar>& weights() const noexcept { return weights_; }

  /// Inference of tokens that continue the cache's sequences, which are those of the context, in order: y [T,D] is
  /// overwritten and the cache stands behind the tokens. Throws std::invalid_argument, before the cache changes, if it
  /// is another layer's or has another number of sequences.
  void forward_cached(tokens_in<Scalar> x, tokens_out<Scalar> y, state_space_cache<Scalar>& cache, workspace& ws,
                      const context_type& context = {}) const {
    check_context(context, x.rows());
    cache.validate(*this, context);
    this->run(x, y, ws, context, [&](tokens_in<Scalar> seen) {
      scan(seen, y, ws, context, cache.states(), cache.history());
      cache.remember(ws.sequences.span(), rows_of(ws.projected));
    });
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t selected = weights_.selection.rows() * (weights_.is_normalized() ? 2 : 1), I = channels();
    const index_t kept = (I + kernel::scan_channels - 1) / kernel::scan_channels * kernel::scan_channels * states();
    const index_t numbers = 5 * I + selected + inputs();
    return (rows * (training ? 2 * numbers + 2 * I : numbers) +
            (training ? rows / kernel::scan_tokens * kept + rows * kept / (kernel::scan_channels / 2) : 0)) *
           static_cast<index_t>(sizeof(Scalar));
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    state_space_weights<Scalar>::visit_parameters(self.weights_, visit);
  }

private:
  static rows_out rows_of(matrix_buffer<Scalar>& m) { return {m.data(), m.cols()}; }
  static rows_in rows_of(const matrix_buffer<Scalar>& m) { return {m.data(), m.cols()}; }
  /// The columns from `first` on.
  template <typename Matrix>
  static auto columns_of(Matrix& m, index_t first) {
    auto rows = rows_of(m);
    rows.data += first;
    return rows;
  }

  /// f(first column, columns, norm) for r, B and C.
  template <typename F>
  void for_each_part(F&& f) const {
    const index_t R = step_rank(), N = states();
    f(index_t(0), R, std::size_t(0));
    f(R, N, std::size_t(1));
    f(R + N, N, std::size_t(2));
  }

  /// r, B and C as the steps and the scan read them.
  template <typename Memory>
  auto& selected(Memory& m) const {
    return weights_.is_normalized() ? m.normalized : m.selection;
  }

  template <typename Memory>
  kernel::scan_inputs<Scalar> scan_inputs(const Memory& m) const {
    const auto& of = selected(m);
    return {.channels = channels(),
            .states = states(),
            .sequences = m.sequences.span(),
            .steps = rows_of(m.steps),
            .x = rows_of(m.convolved),
            .into = columns_of(of, step_rank()),
            .out_of = columns_of(of, step_rank() + states()),
            .log_decay = weights_.log_decay.data(),
            .skip = weights_.skip.data(),
            .token_mask = {m.kept.counts(), as_size(m.kept.rows())}};
  }

  template <typename Memory>
  void mix(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context) const {
    scan(x, y, m, context, nullptr, nullptr);
  }

  template <typename Memory>
  void scan(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context, Scalar* states_of,
            const Scalar* history) const {
    constexpr bool trains = std::same_as<Memory, tape>;
    const executor_ref& executor = context.executor;
    const index_t T = x.rows(), I = channels();
    m.sequences.clear();
    m.sequences.reserve((std::max)(T, context.sequence_count()));  // shorter sequences find room as well
    for (index_t s = 0; s < context.sequence_count(); ++s) m.sequences.push_back(context.sequence(s, T));
    if (T == 0) return;

    m.projected.resize(T, 2 * I);
    linear_forward(x, weights_.input, m.projected.map(), executor);
    if (weights_.has_bias())
      for (index_t t = 0; t < T; ++t)  // where a token is hidden, zeros stay
        if (m.kept.counts(t)) kernel::add_scaled(Scalar(1), weights_.input_bias.data(), m.projected.row(t), 2 * I);
    kernel::turn_taps(weights_.convolution.data(), I, taps(), m.taps);
    m.convolved.resize(T, I);
    matrix_buffer<Scalar>* sums = &m.convolved;
    if constexpr (trains) sums = &m.sums, m.sums.resize(T, I);
    kernel::causal_convolution<Scalar>(m.sequences.span(), rows_of(m.projected), m.taps,
                                       weights_.convolution_bias.data(), history, rows_of(*sums), executor);
    executor.parallel_each(T, 4 * channels(), [&](index_t t) {
      kernel::transform(
          I, [](const auto& v) { return silu::value(v); }, m.convolved.row(t), sums->row(t));
    });

    m.selection.resize(T, weights_.selection.rows());
    linear_forward(std::as_const(m.convolved).map(), weights_.selection, m.selection.map(), executor);
    if (weights_.is_normalized()) {
      m.normalized.resize(T, weights_.selection.rows());
      for_each_part([&](index_t first, index_t count, std::size_t i) {
        weights_.norms[i].forward(m.selection.map().middleCols(first, count),
                                  m.normalized.map().middleCols(first, count), m.norms[i], executor);
      });
    }
    m.steps.resize(T, I);
    linear_forward(selected(m).map().leftCols(step_rank()), weights_.step, m.steps.map(), executor);
    executor.parallel_each(T, 4 * channels(), [&](index_t t) {
      kernel::transform(
          I, [](const kernel::simd<Scalar>& r, const kernel::simd<Scalar>& b) { return kernel::softplus(r + b); },
          m.steps.row(t), m.steps.row(t), weights_.step_bias.data());
    });

    m.mixed.resize(T, I);
    kernel::selective_scan<Scalar>(scan_inputs(m), rows_of(m.mixed), states_of, trains, m.scan, executor);
    matrix_buffer<Scalar>* gated = &m.mixed;
    if constexpr (trains) gated = &m.gated, m.gated.resize(T, I);
    executor.parallel_each(T, 4 * channels(), [&](index_t t) {
      kernel::transform(
          I, [](const auto& s, const auto& z) { return s * silu::value(z); }, gated->row(t), m.mixed.row(t),
          m.projected.row(t) + I);
    });
    linear_forward(std::as_const(*gated).map(), weights_.output, y, executor);
    if (weights_.has_bias()) add_to_rows<Scalar>(y, weights_.output_bias);
  }

  void mix_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    const executor_ref& executor = t.context.executor;
    const index_t T = dy.rows(), I = channels(), R = step_rank(), N = states();
    if (T == 0) return;
    t.dmixed.set_zero(T, I);
    linear_backward(std::as_const(t.gated).map(), weights_.output, dy, t.dmixed.map(), executor);
    if (weights_.has_bias()) add_column_sums(dy, weights_.output_bias.gradient());
    t.dprojected.resize(T, 2 * I);
    executor.parallel_each(T, 8 * channels(), [&](index_t r) {
      Scalar *const z = t.projected.row(r) + I, *const ds = t.dmixed.row(r);
      kernel::transform(
          I, [](const auto& g, const auto& s, const auto& gate) { return g * s * silu::derivative(gate); },
          t.dprojected.row(r) + I, ds, t.mixed.row(r), z);
      kernel::transform(
          I, [](const auto& g, const auto& gate) { return g * silu::value(gate); }, ds, ds, z);
    });

    t.dsteps.resize(T, I);
    t.dconvolved.resize(T, I);
    t.dselection.set_zero(T, weights_.selection.rows());
    if (weights_.is_normalized()) t.dnormalized.resize(T, weights_.selection.rows());
    auto& dselected = weights_.is_normalized() ? t.dnormalized : t.dselection;
    kernel::selective_scan_backward<Scalar>(scan_inputs(t),
                                            {.dy = rows_of(t.dmixed),
                                             .dsteps = rows_of(t.dsteps),
                                             .dx = rows_of(t.dconvolved),
                                             .dinto = columns_of(dselected, R),
                                             .dout_of = columns_of(dselected, R + N),
                                             .dlog_decay = weights_.log_decay.gradient().data(),
                                             .dskip = weights_.skip.gradient().data()},
                                            t.scan, executor);

    // The derivative of softplus, of its value: 1 - exp(-d).
    executor.parallel_each(T, 4 * channels(), [&](index_t r) {
      kernel::transform(
          I,
          [](const kernel::simd<Scalar>& g, const kernel::simd<Scalar>& d) -> kernel::simd<Scalar> {
            return g * -expm1(-d);
          },
          t.dsteps.row(r), t.dsteps.row(r), t.steps.row(r));
    });
    dselected.map().leftCols(R).setZero();
    linear_backward(selected(t).map().leftCols(R), weights_.step, t.dsteps.map(), dselected.map().leftCols(R),
                    executor);
    add_column_sums<Scalar>(t.dsteps.map(), weights_.step_bias.gradient());
    if (weights_.is_normalized())
      for_each_part([&](index_t first, index_t count, std::size_t i) {
        weights_.norms[i].backward(t.selection.map().middleCols(first, count), dselected.map().middleCols(first, count),
                                   t.norms[i], t.dselection.map().middleCols(first, count), executor);
      });
    linear_backward(std::as_const(t.convolved).map(), weights_.selection, t.dselection.map(), t.dconvolved.map(),
                    executor);

    executor.parallel_each(T, 4 * channels(), [&](index_t r) {
      kernel::transform(
          I, [](const auto& g, const auto& v) { return g * silu::derivative(v); }, t.dconvolved.row(r),
          t.dconvolved.row(r), t.sums.row(r));
    });
    kernel::causal_convolution_backward<Scalar>(t.sequences.span(), rows_of(t.projected), t.taps, rows_of(t.dconvolved),
                                                rows_of(t.dprojected), weights_.convolution.gradient().data(),
                                                weights_.convolution_bias.gradient().data(), executor);
    for (index_t r = 0; r < T; ++r)
      if (!t.kept.counts(r)) std::fill_n(t.dprojected.row(r), 2 * I, Scalar(0));
    linear_backward(t.kept.x(), weights_.input, t.dprojected.map(), dx, executor);
    if (weights_.has_bias()) add_column_sums<Scalar>(t.dprojected.map(), weights_.input_bias.gradient());
  }

  state_space_weights<Scalar> weights_;
};

/// Mamba's mixer, and BlackMamba's.
template <FloatOrDouble Scalar>
using mamba_mixer = state_space_mixer<Scalar>;

}  // namespace sluice::inline SLUICE_ISA
