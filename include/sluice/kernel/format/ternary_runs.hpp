/// A ternary weight matrix in rows of variable length, as QMoE compresses it below one bit a weight, and its product,
/// which decodes while it multiplies.
///
///   W [out,in], W(o, i) in {0, low[o], high[o]}, low <= 0 <= high, levels of bfloat16
///   runs[first[o] .. first[o+1]]   row o as entries of the dictionary (kernel/format/ternary_dictionary.hpp), the longest
///                                  that fits each time; an odd last weight has a zero beside it
///   y(t, o) = high sum of x(t, i) where W = high  +  low sum of x(t, i) where W = low
///
/// A value is 2 where the weight is the row's largest number or 0, else 1 where it is the row's least, else 0: zeros of
/// a row without negative weights are 1, of one without positive weights 2, and such rows become long. So does a matrix
/// with few zeros: bits_a_weight() says whether it was worth it (0.73 where 88.5 % are zero, 4.2 where a third is).
///
/// The product takes the rows of x by vectors of tokens and goes through places that are not zero: a token's sums have
/// one order, whatever tokens are beside it. A weight of zero takes no part, so infinity times zero is nothing here.
/// Empty matrices and batches are fine. Paper: Frantar and Alistarh 2023, QMoE.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/half.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/format/ternary_dictionary.hpp>
#include <sluice/kernel/simd.hpp>

#include <bit>

namespace sluice::inline SLUICE_ISA {

class ternary_runs {
public:
  ternary_runs() = default;
  /// Of parts that a file holds. Throws std::invalid_argument unless every row has runs for just its weights.
  ternary_runs(index_t inputs, std::vector<std::uint16_t> runs, std::vector<index_t> first, std::vector<bfloat16> low,
               std::vector<bfloat16> high)
      : inputs_(inputs),
        runs_(std::move(runs)),
        first_(std::move(first)),
        low_(std::move(low)),
        high_(std::move(high)) {
    validate();
  }
  /// Compresses. Throws std::invalid_argument if a row has a fourth number, or a level that is no bfloat16.
  static ternary_runs of(const matrix<float>& w) {
    ternary_runs made;
    made.inputs_ = w.cols();
    for (index_t o = 0; o < w.rows(); ++o) made.add_row(w.data() + o * w.cols(), o);
    return made;
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t outputs() const noexcept { return static_cast<index_t>(first_.size()) - 1; }
  const std::vector<std::uint16_t>& runs() const noexcept { return runs_; }
  const std::vector<index_t>& first() const noexcept { return first_; }
  float low(index_t output) const noexcept { return to_float(low_[as_size(output)]); }
  float high(index_t output) const noexcept { return to_float(high_[as_size(output)]); }
  /// Runs of 16 bits, and an offset of 32 and two levels a row.
  double bits_a_weight() const noexcept {
    const double size = static_cast<double>(inputs_) * static_cast<double>(outputs());
    return size == 0 ? 0 : (16 * static_cast<double>(runs_.size()) + 64 * static_cast<double>(outputs())) / size;
  }

  /// values [in] of row `output`: 0, 1 or 2.
  void values(index_t output, int* out) const {
    const ternary_dictionary& dictionary = ternary_dictionary::shared();
    index_t at = 0;
    for (index_t k = first_[as_size(output)]; k < first_[as_size(output + 1)]; ++k)
      for (index_t i = 0; i < 2 * dictionary.pairs(runs_[as_size(k)]) && at < inputs_; ++i)
        out[at++] = dictionary.value(runs_[as_size(k)], i);
  }
  matrix<float> to_matrix() const {
    matrix<float> w(outputs(), inputs_);
    std::vector<int> value(as_size(inputs_));
    for (index_t o = 0; o < outputs(); ++o) {
      values(o, value.data());
      const std::array<float, 3> levels{0.0F, low(o), high(o)};
      for (index_t i = 0; i < inputs_; ++i) w(o, i) = levels[as_size(value[as_size(i)])];
    }
    return w;
  }

  /// y [T,out] = x [T,in] W^T. `columns` keeps its memory from call to call. Throws std::invalid_argument if shapes
  /// differ.
  void multiply(tokens_in<float> x, tokens_out<float> y, buffer<float>& columns,
                const executor_ref& executor = {}) const {
    if (x.cols() != inputs_ || y.cols() != outputs() || x.rows() != y.rows())
      throw_invalid("ternary runs [", outputs(), ", ", inputs_, "] do not make [", y.rows(), ", ", y.cols(), "] of [",
                    x.rows(), ", ", x.cols(), "]");
    const ternary_dictionary& dictionary = ternary_dictionary::shared();
    const index_t groups = (x.rows() + lanes - 1) / lanes, room = inputs_;
    if (x.rows() == 1) {
      executor.parallel_each(outputs(), inputs_ / 4, [&](index_t o) {
        y(0, o) = level_sum(o, sums<float>(dictionary, o, x.data(), 1)).get(0);
      });
      return;
    }
    columns.assign(checked_product(groups, room * lanes), 0.0F);  // [group][in][L]
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t i = 0; i < inputs_; ++i) columns[(t / lanes * room + i) * lanes + t % lanes] = x(t, i);
    executor.parallel_blocks(outputs(), output_block, x.rows() * inputs_ / 4, [&](index_t begin, index_t end) {
      for (index_t g = 0; g < groups; ++g)
        for (index_t o = begin; o < end; ++o) {
          alignas(64) std::array<float, as_size(lanes)> column;
          kernel::store<float>(column.data(),
                               level_sum(o, sums<vector>(dictionary, o, columns.data() + g * room * lanes, lanes)));
          for (index_t l = 0; l < lanes && g * lanes + l < x.rows(); ++l) y(g * lanes + l, o) = column[as_size(l)];
        }
    });
  }

private:
  using vector = kernel::simd<float>;
  static constexpr index_t lanes = kernel::simd_width<float>;
  static constexpr index_t output_block = 64;

  template <typename Sum>
  struct pair_of_sums {
    Sum low, high;
  };

  /// Sums of a row's places with its two levels; x: `width` numbers an input.
  template <typename Sum>
  pair_of_sums<Sum> sums(const ternary_dictionary& dictionary, index_t output, const float* x,
                         index_t width) const noexcept {
    const auto at = [&](int place) {
      if constexpr (std::same_as<Sum, float>)
        return x[place];
      else
        return kernel::load(x + place * width);
    };
    pair_of_sums<Sum> sum{Sum(0.0F), Sum(0.0F)};
    for (index_t k = first_[as_size(output)]; k < first_[as_size(output + 1)]; ++k) {
      const ternary_dictionary::places where = dictionary.where(runs_[as_size(k)]);
      for (std::uint32_t bits = where.minus; bits != 0; bits &= bits - 1)
        sum.low = sum.low + at(std::countr_zero(bits));
      for (std::uint32_t bits = where.plus & 0x0FFFFFFFU; bits != 0; bits &= bits - 1)
        sum.high = sum.high + at(std::countr_zero(bits));
      x += 2 * index_t{where.plus >> 28} * width;
    }
    return sum;
  }
  template <typename Sum>
  vector level_sum(index_t output, const pair_of_sums<Sum>& sum) const noexcept {
    return kernel::multiply_add<float>(vector(high(output)), vector(sum.high), vector(low(output)) * vector(sum.low));
  }

  void add_row(const float* w, index_t output) {
    float low = 0, high = 0;
    for (index_t i = 0; i < inputs_; ++i) {
      if (is_nan(w[i])) throw_invalid("row ", output, " has NaN at input ", i);
      low = (std::min)(low, w[i]);
      high = (std::max)(high, w[i]);
    }
    const auto value = [&](index_t i) {
      if (i >= inputs_) return 0;
      if (w[i] == high) return 2;
      if (w[i] == low) return 1;
      if (w[i] != 0) throw_invalid("row ", output, " has ", w[i], " beside ", low, ", 0 and ", high);
      return 0;
    };
    const ternary_dictionary& dictionary = ternary_dictionary::shared();
    for (index_t i = 0; i < inputs_;) {
      std::uint16_t run = dictionary.single(value(i) + 3 * value(i + 1));
      for (i += 2; i < inputs_; i += 2) {
        const std::uint16_t more = dictionary.longer(run, value(i) + 3 * value(i + 1));
        if (more == 0) break;
        run = more;
      }
      runs_.push_back(run);
    }
    first_.push_back(static_cast<index_t>(runs_.size()));
    for (auto [level, levels] : {std::pair{low, &low_}, std::pair{high, &high_}}) {
      levels->push_back(round_to<bfloat16>(level));
      if (to_float(levels->back()) != level)
        throw_invalid("row ", output, " has the level ", level, ", which is no bfloat16");
    }
  }

  void validate() const {
    if (inputs_ < 0 || first_.empty() || first_.front() != 0 || first_.back() != static_cast<index_t>(runs_.size()) ||
        low_.size() != high_.size() || low_.size() + 1 != first_.size())
      throw_invalid(first_.size(), " offsets, ", low_.size(), " and ", high_.size(), " levels and ", runs_.size(),
                    " runs are no ternary rows of ", inputs_, " weights");
    const ternary_dictionary& dictionary = ternary_dictionary::shared();
    for (index_t o = 0; o < outputs(); ++o) {
      const index_t begin = first_[as_size(o)], end = first_[as_size(o + 1)];
      if (begin > end || end > first_.back()) throw_invalid("row ", o, " has the runs ", begin, " to ", end);
      index_t pairs = 0;
      for (index_t k = begin; k < end; ++k) pairs += dictionary.pairs(runs_[as_size(k)]);
      if (pairs != (inputs_ + 1) / 2) throw_invalid("row ", o, " has ", 2 * pairs, " values for ", inputs_, " weights");
      if (const std::uint16_t last = inputs_ % 2 == 0 ? std::uint16_t{0} : runs_[as_size(end - 1)];
          dictionary.value(last, 2 * dictionary.pairs(last) - 1) != 0)
        throw_invalid("row ", o, " has a weight beside its ", inputs_);
    }
  }

  index_t inputs_ = 0;
  std::vector<std::uint16_t> runs_;
  std::vector<index_t> first_{0};
  std::vector<bfloat16> low_;
  std::vector<bfloat16> high_;
};

}  // namespace sluice::inline SLUICE_ISA
