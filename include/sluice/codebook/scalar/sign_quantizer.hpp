/// What lookup-free and binary spherical quantisation share: the code of a token is the signs of its numbers.
///
///   x [T,D] -> y = size sign(x), -size for 0 -> ids [T,M]        first number of a column: the most significant bit
///   dx = slope dy + gradient of
///   loss = commitment mean over t of |x[t] - y[t]|^2 + per_sample * per_sample entropy - batch * batch entropy
///
/// where y in the loss is a constant, and the entropies are those of p = softmax over codes of 2 inverse_temperature
/// x . code in parts of some numbers (codebook/scalar/code_entropy.hpp, with their cost). Weights 0: none is computed.
/// Losses and their parts are those of training calls, over tokens that are neither padding nor NaN. Hidden tokens, ids
/// and threads: codebook/scalar/grid.hpp, codebook/quantizer.hpp. A published quantiser says what its weights are in
/// these terms.
#pragma once

#include <sluice/codebook/scalar/code_entropy.hpp>
#include <sluice/codebook/scalar/grid.hpp>

#include <limits>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <FloatOrDouble Scalar>
struct sign_losses {
  double commitment = 0, per_sample = 0, batch = 0;
  double inverse_temperature = 1;
  index_t part = 1;  ///< numbers whose codes are summed together

  bool has_entropies() const noexcept { return per_sample != 0 || batch != 0; }
};

template <FloatOrDouble Scalar, typename Logarithm>
struct sign_tape {
  code_entropy<Scalar, Logarithm> entropy;
  double commitment = 0;  ///< mean over tokens of the squared distance to the code
  index_t counted = 0;    ///< tokens in it
};

}  // namespace detail

template <typename Derived, FloatOrDouble Scalar, typename Logarithm>
class sign_quantizer
    : public grid_quantizer<Derived, Scalar, sign_rounding<Scalar>, detail::sign_tape<Scalar, Logarithm>> {
  using grid = grid_quantizer<Derived, Scalar, sign_rounding<Scalar>, detail::sign_tape<Scalar, Logarithm>>;
  using base = quantizer_base<Derived, Scalar, detail::no_memory, detail::sign_tape<Scalar, Logarithm>>;
  friend base;

public:
  /// Throws std::invalid_argument unless there are numbers, at most 62 a column, the weights are numbers, the inverse
  /// temperature is above 0, and the parts divide D.
  sign_quantizer(index_t inputs, index_t columns, sign_rounding<Scalar> rounding, detail::sign_losses<Scalar> losses)
      : grid(std::vector<sign_rounding<Scalar>>(as_size(inputs < 0 ? 0 : inputs), rounding), columns,
             fastest_number::last),
        size_(rounding.scale()),
        losses_(losses) {
    constexpr double largest = (std::numeric_limits<double>::max)();
    for (const double weight : {losses.commitment, losses.per_sample, losses.batch})
      if (!is_between(weight, -largest, largest)) throw_invalid("a loss has the weight ", weight);
    if (!is_above(losses.inverse_temperature, 0) || losses.inverse_temperature > largest)
      throw_invalid("entropies need an inverse temperature above 0, not ", losses.inverse_temperature);
    if (losses.has_entropies()) code_entropy<Scalar, Logarithm>::check_part(losses.part, inputs);
  }

private:
  using tape_type = typename base::tape;

  void quantize(tape_type& t, tokens_out<Scalar> y, const routing_context<Scalar>& context) const {
    grid::quantize(t, y, context);
    const auto x = t.kept.x();
    t.counted = 0;
    t.commitment = 0;
    for (index_t token = 0; token < x.rows(); ++token) {
      if (!t.kept.counts(token)) continue;
      ++t.counted;
      Scalar sum = 0;
      for (index_t d = 0; d < x.cols(); ++d) sum += distance(x(token, d)) * distance(x(token, d));
      t.commitment += static_cast<double>(sum);
    }
    if (t.counted > 0) t.commitment /= static_cast<double>(t.counted);
    double value = losses_.commitment * t.commitment;
    if (losses_.has_entropies()) {
      t.entropy.forward(
          x, [&](index_t token) { return t.kept.counts(token); }, losses_.part,
          static_cast<Scalar>(2 * losses_.inverse_temperature) * size_, context.executor);
      value += losses_.per_sample * t.entropy.per_sample - losses_.batch * t.entropy.batch;
    }
    t.value = static_cast<Scalar>(value);
  }

  void quantize_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape_type& t) {
    grid::quantize_backward(dy, dx, t);
    if (t.counted == 0) return;
    const auto x = t.kept.x();
    const auto factor = static_cast<Scalar>(2 * losses_.commitment / static_cast<double>(t.counted));
    for (index_t token = 0; token < x.rows() && factor != 0; ++token)
      if (t.kept.counts(token))
        for (index_t d = 0; d < x.cols(); ++d) dx(token, d) += factor * distance(x(token, d));
    if (losses_.has_entropies())
      t.entropy.backward(static_cast<Scalar>(losses_.per_sample), static_cast<Scalar>(-losses_.batch), dx,
                         t.context.executor);
  }

  /// From a number's code to the number.
  Scalar distance(Scalar x) const noexcept { return x > 0 ? x - size_ : x + size_; }

  Scalar size_;
  detail::sign_losses<Scalar> losses_;
};

}  // namespace sluice::inline SLUICE_ISA
