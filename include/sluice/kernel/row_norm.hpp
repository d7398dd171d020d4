/// Normalisation of rows, forward and backward: the policies that routers and layers take as their norm.
///
///   no_norm      y = x
///   gain_only    y = x * gain                                                     learned gain [D]
///   unit_norm    y = x / max(sqrt(sum x^2 + epsilon) + added, floor)              unit length, nothing learned
///   rms_norm     y = x / max(sqrt(mean x^2 + epsilon), floor / sqrt(D)) * gain (+ bias)    length sqrt(D), learned gain [D]
///   layer_norm   y = (x - mean) / sqrt(variance + epsilon) * gain (+ bias)        population variance
///
/// All have forward(x, y, tape, executor) const and backward(x, dy, tape, dx, executor), which adds into dx and into
/// the gradients of gain and bias; x and tape are those of the forward call. backward may be called on blocks of rows
/// one after another: `first` is the position of the block in the forward call. Gradients are exact, epsilon included;
/// below the floor the length is a constant. A NaN stays in its row. No rows is fine.
/// Zhang and Sennrich 2019 (RMSNorm), arXiv:1910.07467; Ba et al. 2016 (LayerNorm), arXiv:1607.06450.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <span>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// A policy that normalises rows of any width, or of the one that its width() says, if it has that function.
template <typename N>
concept RowNorm = requires(N& norm, tokens_in<typename N::scalar> x, tokens_out<typename N::scalar> y,
                           typename N::tape& tape, const executor_ref& executor, index_t first) {
  std::as_const(norm).forward(x, y, tape, executor);
  norm.backward(x, x, tape, y, executor, first);
};

/// static_assert(explain_row_norm<my_norm>()): the first error says what is asked for.
template <typename N>
consteval bool explain_row_norm() {
  static_assert(RowNorm<N>,
                "sluice: norm needs types `scalar` and `tape`, `void forward(tokens_in<scalar> x, "
                "tokens_out<scalar> y, tape&, const executor_ref&) const` and `void backward(tokens_in<scalar> x, "
                "tokens_in<scalar> dy, tape&, tokens_out<scalar> dx, const executor_ref&, index_t first)`");
  return RowNorm<N>;
}

/// Whether y = x: who would normalise a row once for many uses can take it as it is.
template <RowNorm N>
inline constexpr bool leaves_rows = requires { N::leaves_rows; };

/// Throws std::invalid_argument if the norm is for rows of another width.
template <RowNorm Norm>
void check_norm_width(const char* who, const Norm& norm, index_t width) {
  if constexpr (requires { norm.width(); })
    if (norm.width() != width)
      throw_invalid(who, " normalises rows of width ", width, "; the norm is for width ", norm.width());
}

namespace detail {

inline constexpr index_t norm_column_block = 64;

/// Per row what backward needs: y = (x - mean) * scale, times gain.
template <typename Scalar>
struct norm_tape {
  buffer<Scalar> mean;
  buffer<Scalar> scale;
  buffer<std::uint8_t> at_floor;  ///< 1 where the scale does not depend on x
};

// Rows are read by vectors, fused where the code says so. Left to a compiler, a product is rounded before its sum in
// one copy of a loop and not in the next, and the bits of a row depend on who runs it.

/// The sums of gain dy and of gain dy (x - mean) over a row.
template <typename Scalar>
struct norm_row_sums {
  Scalar plain, centred;

  norm_row_sums(index_t count, Scalar mean, const Scalar* gain, const Scalar* dy, const Scalar* x) noexcept {
    using vector = kernel::simd<Scalar>;
    const vector centre(mean);
    vector sum(Scalar(0)), product(Scalar(0));
    const auto add = [&](const vector& g, const vector& d, const vector& v) {
      sum = kernel::multiply_add<Scalar>(g, d, sum);
      product = kernel::multiply_add<Scalar>(g * d, v - centre, product);
    };
    constexpr index_t width = kernel::simd_width<Scalar>;
    index_t c = 0;
    for (; c + width <= count; c += width) add(kernel::load(gain + c), kernel::load(dy + c), kernel::load(x + c));
    const auto rest = [&](const Scalar* row) { return kernel::load_part(row + c, count - c, Scalar(0)); };
    if (c < count) add(rest(gain), rest(dy), rest(x));
    plain = kernel::sum_lanes<Scalar>(sum);
    centred = kernel::sum_lanes<Scalar>(product);
  }
};

/// dx += s (gain dy - shift - factor (x - mean)) for a row.
template <typename Scalar>
void add_norm_gradient(index_t count, Scalar s, Scalar mean, Scalar shift, Scalar factor, const Scalar* gain,
                       const Scalar* dy, const Scalar* x, Scalar* dx) noexcept {
  using vector = kernel::simd<Scalar>;
  const vector scale(s), centre(mean), less(-shift), by(-factor);
  kernel::transform(
      count,
      [&](const vector& sum, const vector& g, const vector& d, const vector& v) {
        const vector moved = kernel::multiply_add<Scalar>(g, d, less);
        return kernel::multiply_add<Scalar>(scale, kernel::multiply_add<Scalar>(by, v - centre, moved), sum);
      },
      dx, dx, gain, dy, x);
}

/// dgain[c] += sum over rows of dy * (x - mean) * scale; dbias[c] += sum of dy. A task owns columns, rows go in order.
template <bool Centred, typename Scalar>
void add_gain_gradients(tokens_in<Scalar> x, tokens_in<Scalar> dy, const norm_tape<Scalar>& t, index_t first,
                        std::span<Scalar> dgain, std::span<Scalar> dbias, const executor_ref& executor) {
  executor.parallel_blocks(x.cols(), norm_column_block, 2 * x.rows(), [&](index_t begin, index_t end) {
    for (index_t r = 0; r < x.rows(); ++r)
      for (index_t c = begin; c < end; ++c) {
        const Scalar centred = Centred ? x(r, c) - t.mean[first + r] : x(r, c);
        dgain[static_cast<std::size_t>(c)] += dy(r, c) * centred * t.scale[first + r];
        if (!dbias.empty()) dbias[static_cast<std::size_t>(c)] += dy(r, c);
      }
  });
}

/// dx += norm's backward of dy, for the rows of dy that hold a number other than zero. A token that had no part in
/// anything has gradient zero, and its numbers may be NaN: it is not read.
template <typename Norm, typename Scalar = typename Norm::scalar>
void backward_of_used_rows(Norm& norm, tokens_in<Scalar> x, matrix_buffer<Scalar>& dy, typename Norm::tape& t,
                           tokens_out<Scalar> dx, const executor_ref& executor) {
  for_each_used_run(dy, 0, x.rows(), [&](index_t begin, index_t end) {
    const index_t count = end - begin;
    norm.backward(x.middleRows(begin, count), dy.map().middleRows(begin, count), t, dx.middleRows(begin, count),
                  executor, begin);
  });
}

}  // namespace detail

template <FloatOrDouble Scalar>
class no_norm {
public:
  using scalar = Scalar;
  struct tape {};
  static constexpr bool leaves_rows = true;

  explicit no_norm(index_t = 0) {}
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape&, const executor_ref&) const { y = x; }
  void backward(tokens_in<Scalar>, tokens_in<Scalar> dy, tape&, tokens_out<Scalar> dx, const executor_ref&,
                index_t = 0) {
    dx += dy;
  }
};

template <FloatOrDouble Scalar>
class gain_only {
public:
  using scalar = Scalar;
  struct tape {};

  /// Throws std::invalid_argument unless D >= 1.
  explicit gain_only(index_t width) : gain_({width}, parameter_role::vector, initial_values::constant(1)) {
    if (width < 1) throw_invalid("gain_only needs D >= 1, not D = ", width);
  }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape&, const executor_ref& executor) const {
    executor.parallel_each(x.rows(), x.cols(), [&](index_t r) {
      for (index_t c = 0; c < x.cols(); ++c) y(r, c) = x(r, c) * gain_.data()[c];
    });
  }

  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tape&, tokens_out<Scalar> dx, const executor_ref& executor,
                index_t = 0) {
    Scalar* dgain = gain_.gradient().data();
    executor.parallel_blocks(x.cols(), detail::norm_column_block, 2 * x.rows(), [&](index_t begin, index_t end) {
      for (index_t r = 0; r < x.rows(); ++r)
        for (index_t c = begin; c < end; ++c) {
          dx(r, c) += dy(r, c) * gain_.data()[c];
          dgain[c] += dy(r, c) * x(r, c);
        }
    });
  }

  index_t width() const noexcept { return gain_.size(); }
  parameter<Scalar>& gain() noexcept { return gain_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("gain", self.gain_);
  }

private:
  parameter<Scalar> gain_;
};

template <FloatOrDouble Scalar>
class unit_norm {
public:
  using scalar = Scalar;
  using tape = detail::norm_tape<Scalar>;

  /// The width is not needed; rows shorter than the floor are divided by it. Throws std::invalid_argument if epsilon,
  /// the floor or what is added is negative.
  explicit unit_norm(index_t = 0, Scalar epsilon = Scalar(1e-6), Scalar smallest = 0, Scalar added = 0)
      : epsilon_(epsilon), smallest_(smallest), added_(added) {
    if (!is_at_least(epsilon, 0) || !is_at_least(smallest, 0) || !is_at_least(added, 0))
      throw_invalid("unit_norm needs epsilon >= 0, floor >= 0 and added >= 0, not ", epsilon, ", ", smallest, " and ",
                    added);
  }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t, const executor_ref& executor) const {
    t.scale.resize(x.rows());
    t.at_floor.resize(x.rows());
    executor.parallel_each(x.rows(), 4 * x.cols(), [&](index_t r) {
      const Scalar* row = x.data() + r * x.outerStride();
      const Scalar length = std::sqrt(kernel::dot(row, row, x.cols()) + epsilon_) + added_;
      t.at_floor[r] = length < smallest_;
      t.scale[r] = 1 / (t.at_floor[r] ? smallest_ : length);
      kernel::copy_scaled(t.scale[r], row, y.data() + r * y.outerStride(), x.cols());
    });
  }

  /// dx += s (dy - y <y, dy> / (1 - s added)) with y = s x. A row of length 0 passes s dy.
  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tape& t, tokens_out<Scalar> dx, const executor_ref& executor,
                index_t first = 0) {
    executor.parallel_each(x.rows(), 4 * x.cols(), [&](index_t r) {
      const Scalar* row = x.data() + r * x.outerStride();
      const Scalar* upstream = dy.data() + r * dy.outerStride();
      const Scalar s = t.scale[first + r];
      kernel::add_scaled(s, upstream, dx.data() + r * dx.outerStride(), x.cols());
      // The share that x has in what divides it.
      const Scalar of_length = added_ == 0 ? Scalar(1) : s * std::sqrt(kernel::dot(row, row, x.cols()) + epsilon_);
      if (t.at_floor[first + r] || !(of_length > 0)) return;
      kernel::add_scaled(-s * s * s / of_length * kernel::dot(row, upstream, x.cols()), row,
                         dx.data() + r * dx.outerStride(), x.cols());
    });
  }

private:
  Scalar epsilon_;
  Scalar smallest_;
  Scalar added_;
};

template <FloatOrDouble Scalar>
class rms_norm {
public:
  using scalar = Scalar;
  using tape = detail::norm_tape<Scalar>;
  struct options {
    Scalar epsilon = 0;               ///< added to the mean square (language models: 1e-6 or 1e-5)
    Scalar smallest = Scalar(1e-12);  ///< the floor: rows shorter than this are divided by it
    bool bias = false;
  };

  /// Throws std::invalid_argument unless D >= 1 and some epsilon or floor keeps a zero row finite.
  explicit rms_norm(index_t width, options o = {})
      : options_(o), gain_({width}, parameter_role::vector, initial_values::constant(1)) {
    if (width < 1 || !is_at_least(o.epsilon, 0) || !is_at_least(o.smallest, 0) || o.epsilon + o.smallest == Scalar(0))
      throw_invalid("rms_norm needs D >= 1, epsilon >= 0 and floor >= 0, not both 0; D = ", width,
                    ", epsilon = ", o.epsilon, ", floor = ", o.smallest);
    if (o.bias) bias_ = {{width}, parameter_role::vector};
  }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t, const executor_ref& executor) const {
    t.scale.resize(x.rows());
    t.at_floor.resize(x.rows());
    const auto width = static_cast<Scalar>(x.cols());
    executor.parallel_each(x.rows(), 4 * x.cols(), [&](index_t r) {
      const Scalar* row = x.data() + r * x.outerStride();
      const Scalar length = std::sqrt(kernel::dot(row, row, x.cols()) + width * options_.epsilon);
      t.at_floor[r] = length < options_.smallest;
      t.scale[r] = std::sqrt(width) / (t.at_floor[r] ? options_.smallest : length);
      for (index_t c = 0; c < x.cols(); ++c) y(r, c) = row[c] * t.scale[r] * gain_.data()[c];
      if (options_.bias)
        for (index_t c = 0; c < x.cols(); ++c) y(r, c) += bias_.data()[c];
    });
  }

  /// With u = x s and h = gain dy: dx += s (h - u <u, h> / D), without the second term at the floor.
  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tape& t, tokens_out<Scalar> dx, const executor_ref& executor,
                index_t first = 0) {
    executor.parallel_each(x.rows(), 4 * x.cols(), [&](index_t r) {
      const Scalar s = t.scale[first + r];
      const Scalar *const row = x.data() + r * x.outerStride(), *const upstream = dy.data() + r * dy.outerStride();
      Scalar inner = 0;
      if (!t.at_floor[first + r])
        inner = detail::norm_row_sums<Scalar>(x.cols(), Scalar(0), gain_.data(), upstream, row).centred * s * s /
                static_cast<Scalar>(x.cols());
      detail::add_norm_gradient<Scalar>(x.cols(), s, Scalar(0), Scalar(0), inner, gain_.data(), upstream, row,
                                        dx.data() + r * dx.outerStride());
    });
    detail::add_gain_gradients<false>(x, dy, t, first, gain_.gradient(),
                                      options_.bias ? bias_.gradient() : std::span<Scalar>{}, executor);
  }

  index_t width() const noexcept { return gain_.size(); }
  parameter<Scalar>& gain() noexcept { return gain_; }
  parameter<Scalar>& bias() noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("gain", self.gain_);
    if (self.options_.bias) visit("bias", self.bias_);
  }

private:
  options options_;
  parameter<Scalar> gain_;
  parameter<Scalar> bias_;
};

template <FloatOrDouble Scalar>
class layer_norm {
public:
  using scalar = Scalar;
  using tape = detail::norm_tape<Scalar>;
  struct options {
    Scalar epsilon = Scalar(1e-5);
    bool bias = false;
  };

  /// Throws std::invalid_argument unless D >= 1 and epsilon > 0.
  explicit layer_norm(index_t width, options o = {})
      : options_(o), gain_({width}, parameter_role::vector, initial_values::constant(1)) {
    if (width < 1 || !is_above(o.epsilon, 0))
      throw_invalid("layer_norm needs D >= 1 and epsilon > 0, not D = ", width, ", epsilon = ", o.epsilon);
    if (o.bias) bias_ = {{width}, parameter_role::vector};
  }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t, const executor_ref& executor) const {
    t.mean.resize(x.rows());
    t.scale.resize(x.rows());
    const auto width = static_cast<Scalar>(x.cols());
    executor.parallel_each(x.rows(), 4 * x.cols(), [&](index_t r) {
      Scalar mean = 0;
      for (index_t c = 0; c < x.cols(); ++c) mean += x(r, c);
      mean /= width;
      Scalar variance = 0;
      for (index_t c = 0; c < x.cols(); ++c) variance += (x(r, c) - mean) * (x(r, c) - mean);
      t.mean[r] = mean;
      t.scale[r] = 1 / std::sqrt(variance / width + options_.epsilon);
      using vector = kernel::simd<Scalar>;
      const Scalar* const row = x.data() + r * x.outerStride();
      Scalar* const to = y.data() + r * y.outerStride();
      const auto moved = [centre = vector(mean), scale = vector(t.scale[r])](const vector& v) {
        return (v - centre) * scale;
      };
      if (options_.bias)
        kernel::transform(
            x.cols(),
            [&](const vector& v, const vector& g, const vector& b) {
              return kernel::multiply_add<Scalar>(moved(v), g, b);
            },
            to, row, gain_.data(), bias_.data());
      else
        kernel::transform(
            x.cols(), [&](const vector& v, const vector& g) { return moved(v) * g; }, to, row, gain_.data());
    });
  }

  /// With u = (x - mean) s and h = gain dy: dx += s (h - mean(h) - u mean(u h)).
  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tape& t, tokens_out<Scalar> dx, const executor_ref& executor,
                index_t first = 0) {
    const auto width = static_cast<Scalar>(x.cols());
    executor.parallel_each(x.rows(), 4 * x.cols(), [&](index_t r) {
      const Scalar s = t.scale[first + r];
      const Scalar mean = t.mean[first + r];
      const Scalar *const row = x.data() + r * x.outerStride(), *const upstream = dy.data() + r * dy.outerStride();
      const detail::norm_row_sums<Scalar> sums(x.cols(), mean, gain_.data(), upstream, row);
      detail::add_norm_gradient<Scalar>(x.cols(), s, mean, sums.plain / width, s * s * sums.centred / width,
                                        gain_.data(), upstream, row, dx.data() + r * dx.outerStride());
    });
    detail::add_gain_gradients<true>(x, dy, t, first, gain_.gradient(),
                                     options_.bias ? bias_.gradient() : std::span<Scalar>{}, executor);
  }

  index_t width() const noexcept { return gain_.size(); }
  parameter<Scalar>& gain() noexcept { return gain_; }
  parameter<Scalar>& bias() noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("gain", self.gain_);
    if (self.options_.bias) visit("bias", self.bias_);
  }

private:
  options options_;
  parameter<Scalar> gain_;
  parameter<Scalar> bias_;
};

static_assert(RowNorm<no_norm<float>> && RowNorm<gain_only<float>> && RowNorm<unit_norm<float>> &&
              RowNorm<rms_norm<float>> && RowNorm<layer_norm<float>>);

}  // namespace sluice::inline SLUICE_ISA
