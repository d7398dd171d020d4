/// Codes that are moving averages of the tokens that chose them: no gradient, no optimiser.
///
/// After a step, with n_c tokens of code c and s_c their sum:
///   N_c <- decay N_c + (1 - decay) n_c      M_c <- decay M_c + (1 - decay) s_c
///   c   <- M_c / max(N~_c, least_size),   N~_c = (N_c + epsilon) / (sum of N + C epsilon) * sum of N
/// The smoothing keeps the sum of N; it, or least_size, keeps codes that nobody chose finite. With unit_length the new
/// codes are scaled to length 1. A batch without tokens changes nothing. Sums run in the order of tokens.
///
/// Several processes add up their counts and sums and give them to update(). Initial values: codes uniform in (-1/C,
/// 1/C), N = 1; M is zero until the first step and begins as the codes. Parameters (all state): the table, "sizes" N
/// [C], "sums" M [C,D].
/// van den Oord, Vinyals, Kavukcuoglu 2017, appendix A.1; Razavi et al. 2019.
#pragma once

#include <sluice/codebook/code_sums.hpp>
#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct moving_average_options {
  double decay = 0.99;
  double epsilon = 1e-5;
  double least_size = 0;
  bool unit_length = false;
  double initial_size = 1;  ///< N of a code before its first step
};

template <FloatOrDouble Scalar>
class moving_average_codes {
public:
  using scalar = Scalar;
  static constexpr bool learns_by_gradient = false;
  struct memory {
    code_sums<Scalar> sums;
  };

  /// Throws std::invalid_argument unless C, D >= 1, 0 <= decay < 1, epsilon, least_size and initial_size are
  /// at least 0, and one of epsilon and least_size is not 0.
  moving_average_codes(index_t codes, index_t width, moving_average_options o = {}) : options_(o) {
    if (codes < 1 || width < 1) throw_invalid("moving_average_codes needs C, D >= 1, not ", codes, ", ", width);
    if (!is_at_least(o.decay, 0.0) || o.decay >= 1 || !is_at_least(o.epsilon, 0.0) || !is_at_least(o.least_size, 0.0) ||
        !is_above(o.epsilon + o.least_size, 0.0) || !is_at_least(o.initial_size, 0.0))
      throw_invalid(
          "moving_average_codes needs 0 <= decay < 1, epsilon, least_size and initial_size >= 0 and one of the first "
          "two above 0, not ",
          o.decay, ", ", o.epsilon, ", ", o.least_size, " and ", o.initial_size);
    table_ = {{codes, width}, parameter_role::state, initial_values::uniform(1 / static_cast<double>(codes))};
    sizes_ = {{codes}, parameter_role::state, initial_values::constant(o.initial_size)};
    sums_ = {{codes, width}, parameter_role::state};
  }

  index_t codes() const noexcept { return table_.rows(); }
  index_t inputs() const noexcept { return table_.cols(); }
  const moving_average_options& options() const noexcept { return options_; }

  void evaluate(memory&, const executor_ref&) const {}
  const_matrix_map<Scalar> evaluated(const memory&) const { return table_.map(); }
  matrix_map<Scalar> gradient(memory&) { return {nullptr, 0, 0}; }
  void backward(memory&, const executor_ref&) {}
  /// Room for after_step.
  void reserve(memory& m, index_t tokens) const { m.sums.reserve(tokens, codes(), inputs()); }

  void after_step(const quantized_batch<Scalar>& batch, memory& m) {
    if (batch.counted == 0) return;
    sum_by_code(batch.x, batch.ids, codes(), m.sums, batch.context.executor);
    update(m.sums, batch.context.executor);
  }

  /// The step for counts [C] and sums [C,D] of all tokens of a batch, wherever they were added up.
  void update(const code_sums<Scalar>& batch, const executor_ref& executor = {}) {
    begin_sums();
    const Scalar decay = static_cast<Scalar>(options_.decay), rest = static_cast<Scalar>(1 - options_.decay);
    for (index_t c = 0; c < codes(); ++c) {
      Scalar& size = sizes_.data()[c];
      size = decay * size + rest * static_cast<Scalar>(batch.counts[c]);
    }
    Scalar* sums = sums_.data();
    average(executor, [&](index_t c) {
      Scalar* sum = sums + c * inputs();
      kernel::copy_scaled(decay, sum, sum, inputs());
      kernel::add_scaled(rest, batch.sums.row(c), sum, inputs());
    });
  }

  /// The codes of N and M as they are now: for repairs that come before the codes.
  void recompute(const executor_ref& executor = {}) {
    average(executor, [](index_t) {});
  }

  /// The code becomes this vector, as if `size` tokens had chosen it.
  void replace(index_t code, const Scalar* vector, Scalar size = 1) {
    std::copy_n(vector, inputs(), table_.data() + code * inputs());
    sizes_.data()[code] = size;
    kernel::copy_scaled(size, vector, sums_.data() + code * inputs(), inputs());
  }

  parameter<Scalar>& table() noexcept { return table_; }
  const parameter<Scalar>& table() const noexcept { return table_; }
  parameter<Scalar>& sizes() noexcept { return sizes_; }
  const parameter<Scalar>& sizes() const noexcept { return sizes_; }
  parameter<Scalar>& sums() noexcept { return sums_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("", self.table_);
    visit("sizes", self.sizes_);
    visit("sums", self.sums_);
  }

private:
  /// c = M_c / N~_c for every code, after first(c).
  template <typename First>
  void average(const executor_ref& executor, First&& first) {
    Scalar total = 0;
    for (const Scalar size : std::as_const(sizes_).value()) total += size;
    const auto epsilon = static_cast<Scalar>(options_.epsilon);
    const Scalar smoothing = total / (total + static_cast<Scalar>(codes()) * epsilon);
    const auto least = static_cast<Scalar>(options_.least_size);
    Scalar *sums = sums_.data(), *table = table_.data();
    executor.parallel_each(codes(), inputs(), [&](index_t c) {
      first(c);
      const Scalar size = (std::max)((std::as_const(sizes_).value()[as_size(c)] + epsilon) * smoothing, least);
      kernel::copy_scaled(1 / size, sums + c * inputs(), table + c * inputs(), inputs());
      if (options_.unit_length) scale_to_unit(table + c * inputs());
    });
  }

  /// A codebook that came from somewhere else has no M yet. After a step M is zero only where the code is.
  void begin_sums() {
    const auto sums = std::as_const(sums_).value();
    if (std::all_of(sums.begin(), sums.end(), [](Scalar v) { return v == 0; }))
      std::copy_n(std::as_const(table_).data(), table_.size(), sums_.data());
  }

  void scale_to_unit(Scalar* code) const {
    const Scalar length = std::sqrt(kernel::dot(code, code, inputs()));
    kernel::copy_scaled(1 / (std::max)(length, (std::numeric_limits<Scalar>::min)()), code, code, inputs());
  }

  moving_average_options options_;
  parameter<Scalar> table_;
  parameter<Scalar> sizes_;
  parameter<Scalar> sums_;
};

}  // namespace sluice::inline SLUICE_ISA
