/// The softmax of every token over all codes, as what its exponentials are divided by: one sum that part after part of
/// the logits is added to.
///
///   log sum over c of exp(l[t,c]) = maximum + log(sum of exp(l[t,c] - maximum))      kept apart: large logits keep their
///   differences
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// out[j] = exp((in[j] - maximum) - log).
template <typename Scalar>
void exponentials(const Scalar* in, Scalar maximum, Scalar log, Scalar* out, index_t count) {
  const auto exponential = [maximum, log](const auto& l) {
    using std::exp;
    using number = std::remove_cvref_t<decltype(l)>;
    return exp((l - number(maximum)) - number(log));
  };
  kernel::transform(count, exponential, out, in);
}

}  // namespace detail

template <FloatOrDouble Scalar>
struct code_log_sums {
  buffer<Scalar> maxima;  ///< [T]
  buffer<Scalar> logs;    ///< [T] log sum over c of exp(l[t,c] - maximum)

  Scalar operator[](index_t t) const { return maxima[t] + logs[t]; }
  /// l - log sum.
  Scalar below(Scalar l, index_t t) const { return (l - maxima[t]) - logs[t]; }
  /// out[j] = exp(in[j] - log sum), the softmax of a part of the row of token t.
  void shares(index_t t, const Scalar* in, Scalar* out, index_t count) const {
    detail::exponentials(in, maxima[t], logs[t], out, count);
  }
  void reserve(index_t tokens) {
    maxima.reserve(tokens);
    logs.reserve(tokens);
  }
  void resize(index_t tokens) {
    maxima.resize(tokens);
    logs.resize(tokens);
  }
};

namespace detail {

/// A sum of exponentials that parts of at most Most logits are added to, and one of numbers weighted by them.
template <typename Scalar, index_t Most>
class running_log_sum {
public:
  /// With the numbers v.
  void add(const Scalar* logits, index_t count, const Scalar* v) {
    std::array<Scalar, as_size(Most)> e;
    const Scalar kept = rise(logits, count, e.data()).kept;
    weighted_ = kept * weighted_ + kernel::dot(e.data(), v, count);
  }
  /// With the logits' distance to the maximum so far, at the end to that of all.
  void add_below(const Scalar* logits, index_t count) {
    std::array<Scalar, as_size(Most)> e;
    const Scalar before = sum_;
    const auto [kept, by] = rise(logits, count, e.data());
    weighted_ = kept * (weighted_ - by * before);
    for (index_t j = 0; j < count; ++j) weighted_ += e[as_size(j)] * (logits[j] - maximum_);
  }
  void put(code_log_sums<Scalar>& out, index_t t) const {
    out.maxima[t] = maximum_;
    out.logs[t] = std::log(sum_);
  }
  Scalar mean() const { return weighted_ / sum_; }

private:
  struct change {
    Scalar kept;  ///< what exponentials so far are multiplied by
    Scalar by;    ///< how far the maximum rose
  };
  change rise(const Scalar* logits, index_t count, Scalar* e) {
    const Scalar top = (std::max)(maximum_, *std::max_element(logits, logits + count));
    const Scalar by = sum_ == 0 ? Scalar(0) : top - maximum_, kept = std::exp(-by);
    exponentials(logits, top, Scalar(0), e, count);
    maximum_ = top;
    sum_ *= kept;
    for (index_t j = 0; j < count; ++j) sum_ += e[j];
    return {kept, by};
  }

  Scalar maximum_ = -(std::numeric_limits<Scalar>::max)();
  Scalar sum_ = 0;
  Scalar weighted_ = 0;
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
