/// Codes by sampled logits, values by a table of their own: the Gumbel quantiser of vq-wav2vec and wav2vec 2.
///
///   x [T,D] -> L = W x + b [T,G,V]
///   training   id[t,g] = arg max over v of L + zeta, zeta standard Gumbel         else   of L
///   y [T,O] = for every group g, side by side, the row id[t,g] of its table [V,O/G]
///
///   gumbel_quantizer<float> q{512, 256, {.groups = 2, .entries = 320, .diversity_weight = 0.1}};
///
/// The gradient is that of y = softmax((L + zeta) / tau) table for x, W and b, that of the chosen rows for the table;
/// tau = max(start decay^step, stop) with the context's step. In a forward call on a tape that is not training nothing
/// is drawn, and no gradient reaches W or x. With shared_table all groups choose from one table.
///
/// Loss: diversity_weight (G V - P) / (G V), where P, the perplexity of the mean over tokens of softmax(L), is in
/// tape.prob_perplexity: sum over g of exp(-sum over v of p log(p + 1e-7)). tape.code_perplexity is the same of how
/// often v is the arg max of L without noise. A deeper projection is a layer before this one.
/// A draw a token, group and entry: zeta at (t G + g) V + v. Initial values: W normal with deviation 1, b zero, tables
/// uniform in (0, 1). Parameters: "weight" [G V,D], "bias" [G V], "values" [G V,O/G] or [V,O/G].
/// Ties, hidden tokens, T = 0, threads: codebook/quantizer.hpp; infinite logits are not for this quantiser.
/// Baevski, Schneider, Auli 2020, "vq-wav2vec: Self-Supervised Learning of Discrete Speech Representations", section
/// 3.1; Baevski et al. 2020, "wav2vec 2.0", equations 1 and 4.
#pragma once

#include <sluice/codebook/quantizer.hpp>
#include <sluice/core/checked_size.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/softmax.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct gumbel_quantizer_options {
  index_t groups = 2;
  index_t entries = 320;
  bool shared_table = false;
  double start = 2;  ///< temperature
  double stop = 0.5;
  double decay = 0.999995;
  double diversity_weight = 0;
};

namespace detail {

template <typename Scalar>
struct gumbel_memory {
  matrix_buffer<Scalar> logits;  ///< [T,G V]
};

template <typename Scalar>
struct gumbel_tape : gumbel_memory<Scalar> {
  matrix_buffer<Scalar> soft;     ///< [T,G V] softmax of the noisy logits, of as many as take part
  matrix_buffer<Scalar> shares;   ///< [T,G V] softmax of the logits
  matrix_buffer<Scalar> dlogits;  ///< [T,G V]
  buffer<Scalar> mean_shares;     ///< [G V]
  buffer<Scalar> slopes;          ///< [G V] dP / dp
  Scalar temperature = 1;
  Scalar code_perplexity = 0;
  Scalar prob_perplexity = 0;
};

}  // namespace detail

template <FloatOrDouble Scalar>
class gumbel_quantizer : public quantizer_base<gumbel_quantizer<Scalar>, Scalar, detail::gumbel_memory<Scalar>,
                                               detail::gumbel_tape<Scalar>> {
  using base = quantizer_base<gumbel_quantizer, Scalar, detail::gumbel_memory<Scalar>, detail::gumbel_tape<Scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::tape;
  static constexpr random_site site{"gumbel_quantizer"};

  /// Throws std::invalid_argument unless D, O, G, V >= 1, G divides O, temperatures are above 0, 0 < decay <= 1 and
  /// diversity_weight >= 0.
  gumbel_quantizer(index_t inputs, index_t outputs, gumbel_quantizer_options o = {}) : options_(o), outputs_(outputs) {
    if (inputs < 1 || outputs < 1 || o.groups < 1 || o.entries < 1 || outputs % o.groups != 0)
      throw_invalid("a gumbel_quantizer needs D, O, G, V >= 1 and G to divide O, not ", inputs, ", ", outputs, ", ",
                    o.groups, " and ", o.entries);
    if (!is_above(o.start, 0.0) || !is_above(o.stop, 0.0) || !is_above(o.decay, 0.0) || o.decay > 1 ||
        !is_at_least(o.diversity_weight, 0.0))
      throw_invalid("a gumbel_quantizer needs temperatures above 0, 0 < decay <= 1 and diversity_weight >= 0, not ",
                    o.start, ", ", o.stop, ", ", o.decay, " and ", o.diversity_weight);
    const index_t logits = checked_product(o.groups, o.entries);
    weight_ = {{logits, inputs}, parameter_role::weight, initial_values::normal(1)};
    bias_ = {{logits}, parameter_role::vector};
    values_ = {
        {o.shared_table ? o.entries : logits, outputs / o.groups}, parameter_role::weight, initial_values::uniform(1)};
  }

  index_t inputs() const noexcept { return weight_.cols(); }
  index_t outputs() const noexcept { return outputs_; }
  index_t code_columns() const noexcept { return options_.groups; }
  index_t codes(index_t /*column*/ = 0) const noexcept { return options_.entries; }
  const gumbel_quantizer_options& options() const noexcept { return options_; }

  parameter<Scalar>& weight() noexcept { return weight_; }
  parameter<Scalar>& bias() noexcept { return bias_; }
  parameter<Scalar>& values() noexcept { return values_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
    visit("bias", self.bias_);
    visit("values", self.values_);
  }

private:
  static constexpr double added = 1e-7;

  index_t logits_width() const noexcept { return weight_.rows(); }
  index_t part() const noexcept { return values_.cols(); }
  /// The first row of a group's table.
  index_t table(index_t group) const noexcept { return options_.shared_table ? 0 : group * options_.entries; }

  void project(tokens_in<Scalar> x, matrix_buffer<Scalar>& logits, const executor_ref& executor) const {
    logits.resize(x.rows(), logits_width());
    linear_forward(x, weight_, logits.map(), executor);
    add_to_rows(logits.map(), bias_);
  }

  /// The lowest of equals.
  index_t arg_max(const Scalar* logits) const { return std::max_element(logits, logits + options_.entries) - logits; }

  void encode_rows(tokens_in<Scalar> x, tokens_out<index_t> ids, detail::gumbel_memory<Scalar>& m,
                   const context_type& context) const {
    project(x, m.logits, context.executor);
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t g = 0; g < code_columns(); ++g) ids(t, g) = arg_max(m.logits.row(t) + g * options_.entries);
  }

  void decode_rows(tokens_in<index_t> ids, tokens_out<Scalar> y, detail::gumbel_memory<Scalar>&,
                   const executor_ref& executor) const {
    executor.parallel_each(ids.rows(), outputs_, [&](index_t t) {
      for (index_t g = 0; g < code_columns() && ids(t, 0) != no_code; ++g)
        std::copy_n(values_.data() + (table(g) + ids(t, g)) * part(), part(),
                    y.data() + t * y.outerStride() + g * part());
    });
  }

  void assign(tape& t, const context_type& context) const {
    const index_t tokens = t.kept.rows(), width = logits_width();
    project(t.kept.x(), t.logits, context.executor);
    t.temperature = static_cast<Scalar>(
        (std::max)(options_.start * std::pow(options_.decay, static_cast<double>(context.step)), options_.stop));
    t.soft.resize(context.training ? tokens : 0, width);
    context.executor.parallel_each(tokens, 32 * width, [&](index_t i) {
      for (index_t g = 0; g < code_columns(); ++g) {
        const Scalar* logits = t.logits.row(i) + g * options_.entries;
        if (!context.training) {
          t.ids(i, g) = arg_max(logits);
          continue;
        }
        Scalar* noisy = t.soft.row(i) + g * options_.entries;
        const index_t first = i * width + g * options_.entries;
        for (index_t v = 0; v < options_.entries; ++v)
          noisy[v] = logits[v] + static_cast<Scalar>(context.random.gumbel(site, first + v));
        t.ids(i, g) = arg_max(noisy);
        for (index_t v = 0; v < options_.entries; ++v) noisy[v] /= t.temperature;
        kernel::softmax(noisy, noisy, options_.entries);
      }
    });
  }

  void quantize(tape& t, tokens_out<Scalar> y, const context_type& context) const {
    decode_rows(std::as_const(t.ids).map(), y, t, context.executor);
    measure(t);
    const auto all = static_cast<Scalar>(logits_width());
    t.value = static_cast<Scalar>(options_.diversity_weight) * (all - t.prob_perplexity) / all;
    if (t.kept.rows() == 0) t.value = 0;
  }

  void measure(tape& t) const {
    const index_t tokens = t.kept.rows(), entries = options_.entries;
    const index_t counted = t.kept.counted();
    const Scalar share = counted == 0 ? Scalar(0) : 1 / static_cast<Scalar>(counted);
    t.shares.resize(tokens, logits_width());
    t.mean_shares.assign(logits_width(), Scalar(0));
    t.slopes.assign(logits_width(), Scalar(0));  // at first how often an entry is best
    for (index_t i = 0; i < tokens; ++i) {
      if (!t.kept.counts(i)) continue;
      for (index_t g = 0; g < code_columns(); ++g) {
        const Scalar* logits = t.logits.row(i) + g * entries;
        kernel::softmax(logits, t.shares.row(i) + g * entries, entries);
        t.slopes[g * entries + arg_max(logits)] += share;
      }
      kernel::add_scaled(share, t.shares.row(i), t.mean_shares.data(), logits_width());
    }
    t.code_perplexity = t.prob_perplexity = 0;
    for (index_t g = 0; g < code_columns(); ++g) {
      t.code_perplexity += std::exp(entropy(t.slopes.data() + g * entries));
      const Scalar* mean = t.mean_shares.data() + g * entries;
      const Scalar perplexity = std::exp(entropy(mean));
      t.prob_perplexity += perplexity;
      for (index_t v = 0; v < entries; ++v) {
        const Scalar p = mean[v] + static_cast<Scalar>(added);
        t.slopes[g * entries + v] = -perplexity * (std::log(p) + mean[v] / p);
      }
    }
  }

  Scalar entropy(const Scalar* shares) const {
    Scalar sum = 0;
    for (index_t v = 0; v < options_.entries; ++v) sum -= shares[v] * std::log(shares[v] + static_cast<Scalar>(added));
    return sum;
  }

  void quantize_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    const index_t tokens = dy.rows(), entries = options_.entries;
    matrix_map<Scalar> dvalues = values_.gradient_map();
    const index_t counted = t.kept.counted();
    for (index_t i = 0; i < tokens; ++i)
      for (index_t g = 0; g < code_columns() && t.ids(i, 0) != no_code; ++g)
        kernel::add_scaled(Scalar(1), dy.data() + i * dy.outerStride() + g * part(),
                           dvalues.data() + (table(g) + t.ids(i, g)) * part(), part());
    t.dlogits.reserve(tokens, logits_width());
    const bool sampled = t.soft.rows() > 0;
    if (counted == 0 || (!sampled && options_.diversity_weight == 0)) return;
    const Scalar of_loss = -static_cast<Scalar>(options_.diversity_weight / static_cast<double>(logits_width()) /
                                                static_cast<double>(counted));
    t.dlogits.set_zero(tokens, logits_width());
    t.context.executor.parallel_each(tokens, outputs_ * entries / 4, [&](index_t i) {
      if (!t.kept.counts(i)) return;
      for (index_t g = 0; g < code_columns(); ++g) {
        Scalar* d = t.dlogits.row(i) + g * entries;
        if (sampled) {
          for (index_t v = 0; v < entries; ++v)
            d[v] = kernel::dot(dy.data() + i * dy.outerStride() + g * part(), values_.data() + (table(g) + v) * part(),
                               part());
          through_softmax(t.soft.row(i) + g * entries, d, 1 / t.temperature);
        }
        if (of_loss == 0) continue;
        const Scalar *p = t.shares.row(i) + g * entries, *slope = t.slopes.data() + g * entries;
        const Scalar mean = kernel::dot(p, slope, entries);
        for (index_t v = 0; v < entries; ++v) d[v] += of_loss * p[v] * (slope[v] - mean);
      }
    });
    linear_backward(t.kept.x(), weight_, std::as_const(t.dlogits).map(), dx, t.context.executor);
    add_column_sums(std::as_const(t.dlogits).map(), bias_.gradient());
  }

  /// d = scale p (d - sum of p d).
  void through_softmax(const Scalar* p, Scalar* d, Scalar scale) const {
    const Scalar mean = kernel::dot(p, std::as_const(d), options_.entries);
    for (index_t v = 0; v < options_.entries; ++v) d[v] = scale * p[v] * (d[v] - mean);
  }

  gumbel_quantizer_options options_;
  index_t outputs_;
  parameter<Scalar> weight_;
  parameter<Scalar> bias_;
  parameter<Scalar> values_;
};

static_assert(Quantizer<gumbel_quantizer<float>>);

}  // namespace sluice::inline SLUICE_ISA
