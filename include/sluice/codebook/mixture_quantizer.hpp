/// Codes drawn as components of a Gaussian mixture, some of the frequent ones left out: the quantiser of McQuic.
///
///   x [T,M d] in M parts with K codes each      l[t,m,k] = -|x_tm - c_mk|^2 max(theta_m, 1e-6) / sqrt(K)
///   training    code k of part m is left out, l = -1e9, where U^p < f[m,k];  p = log2 K - (log2 K - 1) u^2
///               id[t,m] = arg max over k of l + zeta, zeta = -log(-log U')
///   else        id[t,m] = the nearest code           y = the codes side by side
///   f           how often a code was the best without zeta, left-out ones aside:
///               f <- decay f + (1 - decay) share of the batch
///   u           the share of all M K entries of f that are above 1e-6
///
/// Frequent codes are forbidden now and then so that others learn. The gradient is that of y = softmax(l + zeta) C for
/// x, C and theta, with that of the chosen code for C. In a forward call on a tape that is not training the codes are
/// the nearest and have the only gradient.
///
///   mixture_quantizer<float> q{6, 8192, 32};     6 parts, 8192 codes of width 32
///   every so often: q.reassign(random);          codes that nobody uses become copies of the most used ones
///
/// Levels, each of which codes what the one before left, are a residual_quantizer of these with
/// residual_gradient::through_stages (codebook/structure/residual.hpp). Logits [T,M K] are in memory. Draws of entry
/// i = (t M + m) K + k: U at 2 i, U' at 2 i + 1. Initial values: C normal with deviation sqrt(2 / (5 d)), theta 1, f
/// 1/K. Parameters: "codebook" [M K,d], "temperature" [M], "usage" f [M K] (state). Ties, hidden tokens, T = 0:
/// codebook/quantizer.hpp.
/// Zhu et al. 2022, "Unified Multivariate Gaussian Mixture for Efficient Neural Image Compression", and the released
/// code.
#pragma once

#include <sluice/codebook/mixture_logits.hpp>
#include <sluice/codebook/quantizer.hpp>
#include <sluice/codebook/repair/split_most_used.hpp>
#include <sluice/core/checked_size.hpp>
#include <sluice/kernel/softmax.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct mixture_quantizer_options {
  double decay = 0.9;
  bool random_drop = true;
};

namespace detail {

template <typename Scalar>
struct mixture_memory {
  matrix_buffer<Scalar> logits;  ///< [T,M K]
  buffer<Scalar> squares;        ///< [M K] of codes
};

template <typename Scalar>
struct mixture_tape : mixture_memory<Scalar> {
  matrix_buffer<Scalar> soft;      ///< [T,M K] of the noisy logits; without rows if nothing was drawn
  matrix_buffer<Scalar> dlogits;   ///< [T,M K]
  matrix_buffer<index_t> counted;  ///< [T,M] the best codes without noise
};

}  // namespace detail

template <FloatOrDouble Scalar>
class mixture_quantizer : public quantizer_base<mixture_quantizer<Scalar>, Scalar, detail::mixture_memory<Scalar>,
                                                detail::mixture_tape<Scalar>> {
  using base = quantizer_base<mixture_quantizer, Scalar, detail::mixture_memory<Scalar>, detail::mixture_tape<Scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::tape;
  static constexpr random_site site{"mixture_quantizer"};
  static constexpr double unused_below = 1e-6;
  static constexpr double left_out = -1e9;

  /// Throws std::invalid_argument unless M, d >= 1, K >= 2 and 0 <= decay < 1.
  mixture_quantizer(index_t parts, index_t codes, index_t width, mixture_quantizer_options o = {}) : options_(o) {
    if (parts < 1 || codes < 2 || width < 1 || !is_at_least(o.decay, 0.0) || o.decay >= 1)
      throw_invalid("a mixture_quantizer needs M, d >= 1, K >= 2 and 0 <= decay < 1, not ", parts, ", ", width, ", ",
                    codes, " and ", o.decay);
    table_ = {{checked_product(parts, codes), width},
              parameter_role::weight,
              initial_values::normal(std::sqrt(0.4 / static_cast<double>(width)))};
    temperature_ = {{parts}, parameter_role::vector, initial_values::constant(1)};
    usage_ = {{parts * codes}, parameter_role::state, initial_values::constant(1 / static_cast<double>(codes))};
  }

  index_t inputs() const noexcept { return code_columns() * width(); }
  index_t code_columns() const noexcept { return temperature_.size(); }
  index_t codes(index_t /*column*/ = 0) const noexcept { return table_.rows() / code_columns(); }
  const mixture_quantizer_options& options() const noexcept { return options_; }

  void after_step(tape& t) {
    t.record.validate(this);
    const index_t counted = t.kept.counted();
    if (counted == 0) return;
    for (Scalar& f : usage_.value()) f *= static_cast<Scalar>(options_.decay);
    const auto share = static_cast<Scalar>((1 - options_.decay) / static_cast<double>(counted));
    for (index_t i = 0; i < t.kept.rows(); ++i)
      for (index_t m = 0; m < code_columns() && t.kept.counts(i); ++m)
        usage_.data()[m * codes() + t.counted(i, m)] += share;
  }

  /// Codes with f < 1e-6 take the vectors of the most frequent codes of their part
  /// (codebook/repair/split_most_used.hpp); returns how many.
  index_t reassign(const random_source& random) {
    most_used_split split;
    index_t count = 0;
    for (index_t m = 0; m < code_columns(); ++m) {
      Scalar* codebook = table_.data() + m * codes() * width();
      split.find(usage_.data() + m * codes(), codes(), unused_below,
                 [&](index_t i) { return random.uniform(split_most_used::site, m * codes() + i); });
      for (index_t i = 0; i < split.size(); ++i, ++count)
        std::copy_n(codebook + split.donor(i) * width(), width(), codebook + split.taker(i) * width());
    }
    return count;
  }

  parameter<Scalar>& table() noexcept { return table_; }
  parameter<Scalar>& temperature() noexcept { return temperature_; }
  parameter<Scalar>& usage() noexcept { return usage_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("codebook", self.table_);
    visit("temperature", self.temperature_);
    visit("usage", self.usage_);
  }

private:
  index_t width() const noexcept { return table_.cols(); }
  const Scalar* code(index_t m, index_t k) const noexcept { return table_.data() + (m * codes() + k) * width(); }
  detail::mixture_codes<Scalar> mixture() const noexcept {
    return {table_.data(), temperature_.data(), code_columns(), codes(), width()};
  }

  index_t arg_max(const Scalar* logits) const { return std::max_element(logits, logits + codes()) - logits; }

  void encode_rows(tokens_in<Scalar> x, tokens_out<index_t> ids, detail::mixture_memory<Scalar>& memory,
                   const context_type& context) const {
    mixture().score(x, memory.logits, memory.squares, context.executor);
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t m = 0; m < code_columns(); ++m) ids(t, m) = arg_max(memory.logits.row(t) + m * codes());
  }

  void decode_rows(tokens_in<index_t> ids, tokens_out<Scalar> y, detail::mixture_memory<Scalar>&,
                   const executor_ref& executor) const {
    executor.parallel_each(ids.rows(), inputs(), [&](index_t t) {
      for (index_t m = 0; m < code_columns() && ids(t, 0) != no_code; ++m)
        std::copy_n(code(m, ids(t, m)), width(), y.data() + t * y.outerStride() + m * width());
    });
  }

  void assign(tape& t, const context_type& context) const {
    const index_t tokens = t.kept.rows(), all = table_.rows();
    mixture().score(t.kept.x(), t.logits, t.squares, context.executor);
    t.counted.resize(tokens, code_columns());
    t.soft.resize(context.training ? tokens : 0, all);
    const auto exponent = static_cast<double>(drop_exponent());
    context.executor.parallel_each(tokens, 32 * all, [&](index_t i) {
      for (index_t m = 0; m < code_columns(); ++m) {
        Scalar* logits = t.logits.row(i) + m * codes();
        const index_t first = i * all + m * codes();
        if (context.training && options_.random_drop)
          for (index_t k = 0; k < codes(); ++k)
            if (std::pow(context.random.uniform(site, 2 * (first + k)), exponent) <
                static_cast<double>(usage_.value()[as_size(m * codes() + k)]))
              logits[k] = static_cast<Scalar>(left_out);
        t.counted(i, m) = t.ids(i, m) = arg_max(logits);
        if (!context.training) continue;
        Scalar* noisy = t.soft.row(i) + m * codes();
        for (index_t k = 0; k < codes(); ++k)
          noisy[k] =
              logits[k] - static_cast<Scalar>(std::log(-std::log(context.random.uniform(site, 2 * (first + k) + 1))));
        t.ids(i, m) = arg_max(noisy);
        kernel::softmax(noisy, noisy, codes());
      }
    });
  }

  double drop_exponent() const {
    const auto used = std::count_if(usage_.value().begin(), usage_.value().end(),
                                    [](Scalar f) { return f > static_cast<Scalar>(unused_below); });
    const double share = static_cast<double>(used) / static_cast<double>(usage_.size());
    const double bits = std::log2(static_cast<double>(codes()));
    return bits - (bits - 1) * share * share;
  }

  void quantize(tape& t, tokens_out<Scalar> y, const context_type& context) const {
    decode_rows(std::as_const(t.ids).map(), y, t, context.executor);
    t.value = 0;
  }

  void quantize_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    const index_t tokens = dy.rows(), all = table_.rows();
    Scalar* const dtable = table_.gradient().data();
    for (index_t i = 0; i < tokens; ++i)
      for (index_t m = 0; m < code_columns() && t.ids(i, 0) != no_code; ++m)
        kernel::add_scaled(Scalar(1), dy.data() + i * dy.outerStride() + m * width(),
                           dtable + (m * codes() + t.ids(i, m)) * width(), width());
    if (t.soft.rows() == 0) return;
    t.dlogits.set_zero(tokens, all);
    t.context.executor.parallel_each(tokens, all * width() / 4, [&](index_t i) {
      for (index_t m = 0; m < code_columns() && t.kept.counts(i); ++m) {
        const Scalar *p = t.soft.row(i) + m * codes(), *g = dy.data() + i * dy.outerStride() + m * width();
        Scalar* d = t.dlogits.row(i) + m * codes();
        for (index_t k = 0; k < codes(); ++k) d[k] = kernel::dot(g, code(m, k), width());
        const Scalar mean = kernel::dot(p, std::as_const(d), codes());
        for (index_t k = 0; k < codes(); ++k) d[k] = p[k] * (d[k] - mean);
      }
    });
    mixture().backward(t.kept.x(), t.logits, t.dlogits, dx, dtable, temperature_.gradient().data(), t.context.executor);
  }

  mixture_quantizer_options options_;
  parameter<Scalar> table_;
  parameter<Scalar> temperature_;
  parameter<Scalar> usage_;
};

static_assert(Quantizer<mixture_quantizer<float>>);

}  // namespace sluice::inline SLUICE_ISA
