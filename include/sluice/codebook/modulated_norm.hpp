/// A group norm whose scale and shift are made of the chosen codes, place by place: how MoVQ's decoder sees them.
///
///   x [B P, C]  features of B images of P = height * width pixels, row by row       q [B p, Z]  codes of p = a smaller map
///   u = q enlarged to the pixels (nearest: source row floor(i h / height)), then a 3 x 3 convolution if wanted, zeros around
///   y = group_norm(x) * (W_s u + b_s) + W_t u + b_t          no "1 +" on the scale
///   group_norm: mean and variance over the pixels of an image and the channels of a group, learned gain and bias [C]
///
///   modulated_norm<float> norm{{.channels = 512, .code_width = 4, .groups = 32, .height = 64, .width = 64, ...}};
///   norm.forward(x, q, y, tape);     norm.backward(dy, dx, dq, tape);            // dx and dq are written, gradients added
///
/// Gradients are exact, to x and to q. B is found from the rows of x; B = 0 is fine. NaN spreads in its image: whoever
/// has hidden pixels hides them before. Equal bits for every executor. Parameters: "gain", "bias", "scale",
/// "scale_bias", "shift", "shift_bias", "convolution" [Z, 9 Z] (row, column, channel of the window) and
/// "convolution_bias". Zheng et al. 2022, "MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation",
/// section 3.2.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/linear.hpp>

#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct modulated_norm_options {
  index_t channels = 0, code_width = 0, groups = 1;
  index_t height = 0, width = 0;              ///< of the features
  index_t code_height = 0, code_columns = 0;  ///< of the map of codes
  bool convolution = false;
  double epsilon = 1e-6;
};

template <FloatOrDouble Scalar>
class modulated_norm {
public:
  using scalar = Scalar;
  struct tape {
    matrix_buffer<Scalar> enlarged, windows, seen, scale, normalized, dscale, dseen, dwindows;
    buffer<Scalar> inverse;  ///< 1 / deviation of an image's group
    index_t images = 0;
  };

  /// Throws std::invalid_argument unless all sizes are at least 1, groups divide the channels and epsilon > 0.
  explicit modulated_norm(const modulated_norm_options& o) : options_(o) {
    if (o.channels < 1 || o.code_width < 1 || o.groups < 1 || o.channels % o.groups != 0 || o.height < 1 ||
        o.width < 1 || o.code_height < 1 || o.code_columns < 1 || !is_above(o.epsilon, 0.0))
      throw_invalid("modulated_norm needs sizes >= 1, groups that divide the channels and epsilon > 0; channels = ",
                    o.channels, ", code_width = ", o.code_width, ", groups = ", o.groups, ", map ", o.height, " x ",
                    o.width, ", codes ", o.code_height, " x ", o.code_columns, ", epsilon = ", o.epsilon);
    const auto weight = [](index_t out, index_t in) {
      return parameter<Scalar>({out, in}, parameter_role::weight,
                               initial_values::normal(1 / std::sqrt(static_cast<double>(in))));
    };
    const auto vector = [](index_t size, double value) {
      return parameter<Scalar>({size}, parameter_role::vector, initial_values::constant(value));
    };
    gain_ = vector(o.channels, 1), bias_ = vector(o.channels, 0);
    scale_ = weight(o.channels, o.code_width), scale_bias_ = vector(o.channels, 0);
    shift_ = weight(o.channels, o.code_width), shift_bias_ = vector(o.channels, 0);
    if (o.convolution)
      convolution_ = weight(o.code_width, 9 * o.code_width), convolution_bias_ = vector(o.code_width, 0);
  }

  const modulated_norm_options& options() const noexcept { return options_; }

  /// Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<Scalar> x, tokens_in<Scalar> q, tokens_out<Scalar> y, tape& t,
               const executor_ref& executor = {}) const {
    check_initialized(*this);
    t.images = x.rows() / pixels();
    if (x.rows() % pixels() != 0 || x.cols() != options_.channels || q.rows() != t.images * code_pixels() ||
        q.cols() != options_.code_width || y.rows() != x.rows() || y.cols() != x.cols())
      throw_invalid("modulated_norm maps [B ", pixels(), ", ", options_.channels, "] by codes [B ", code_pixels(), ", ",
                    options_.code_width, "]; x is [", x.rows(), ", ", x.cols(), "], q [", q.rows(), ", ", q.cols(),
                    "] and y [", y.rows(), ", ", y.cols(), "]");
    enlarge(q, t);
    see(t, executor);
    t.scale.resize(x.rows(), x.cols());
    linear_forward(std::as_const(t.seen).map(), scale_, t.scale.map(), executor);
    linear_forward(std::as_const(t.seen).map(), shift_, y, executor);
    normalize(x, t, executor);
    executor.parallel_each(x.rows(), 4 * x.cols(), [&](index_t p) {
      for (index_t c = 0; c < x.cols(); ++c) {
        t.scale(p, c) += scale_bias_.data()[c];
        y(p, c) += shift_bias_.data()[c] + (t.normalized(p, c) * gain_.data()[c] + bias_.data()[c]) * t.scale(p, c);
      }
    });
  }

  /// For the last forward call of this tape.
  void backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tokens_out<Scalar> dq, tape& t,
                const executor_ref& executor = {}) {
    if (dy.rows() != t.images * pixels() || dy.cols() != options_.channels || dx.rows() != dy.rows() ||
        dx.cols() != dy.cols() || dq.rows() != t.images * code_pixels() || dq.cols() != options_.code_width)
      throw_invalid("backward of ", t.images, " images needs dy and dx [", t.images * pixels(), ", ", options_.channels,
                    "] and dq [", t.images * code_pixels(), ", ", options_.code_width, "]");
    ensure_gradients(*this);
    add_column_sums(dy, shift_bias_.gradient());
    t.dscale.resize(dy.rows(), dy.cols());
    for (index_t p = 0; p < dy.rows(); ++p)
      for (index_t c = 0; c < dy.cols(); ++c) {
        const Scalar n = t.normalized(p, c), d = dy(p, c) * t.scale(p, c);
        t.dscale(p, c) = dy(p, c) * (n * gain_.data()[c] + bias_.data()[c]);
        gain_.gradient()[as_size(c)] += d * n;
        bias_.gradient()[as_size(c)] += d;
        dx(p, c) = d * gain_.data()[c];  // of the normalised numbers, for now
      }
    add_column_sums(std::as_const(t.dscale).map(), scale_bias_.gradient());
    normalize_backward(dx, t, executor);
    t.dseen.set_zero(dy.rows(), options_.code_width);
    const auto seen = std::as_const(t.seen).map();
    linear_backward(seen, scale_, std::as_const(t.dscale).map(), t.dseen.map(), executor);
    linear_backward(seen, shift_, dy, t.dseen.map(), executor);
    see_backward(t, executor);
    dq.setZero();
    for (index_t p = 0; p < dy.rows(); ++p) dq.row(source_of(p)) += t.dseen.map().row(p);
  }

  parameter<Scalar>& gain() noexcept { return gain_; }
  parameter<Scalar>& bias() noexcept { return bias_; }
  parameter<Scalar>& scale() noexcept { return scale_; }
  parameter<Scalar>& scale_bias() noexcept { return scale_bias_; }
  parameter<Scalar>& shift() noexcept { return shift_; }
  parameter<Scalar>& shift_bias() noexcept { return shift_bias_; }
  parameter<Scalar>& convolution() noexcept { return convolution_; }
  parameter<Scalar>& convolution_bias() noexcept { return convolution_bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("gain", self.gain_);
    visit("bias", self.bias_);
    visit("scale", self.scale_);
    visit("scale_bias", self.scale_bias_);
    visit("shift", self.shift_);
    visit("shift_bias", self.shift_bias_);
    if (!self.options_.convolution) return;
    visit("convolution", self.convolution_);
    visit("convolution_bias", self.convolution_bias_);
  }

private:
  index_t pixels() const noexcept { return options_.height * options_.width; }
  index_t code_pixels() const noexcept { return options_.code_height * options_.code_columns; }

  /// The row of q that pixel p of all images shows.
  index_t source_of(index_t p) const noexcept {
    const index_t row = p % pixels() / options_.width, column = p % options_.width;
    return p / pixels() * code_pixels() + row * options_.code_height / options_.height * options_.code_columns +
           column * options_.code_columns / options_.width;
  }

  void enlarge(tokens_in<Scalar> q, tape& t) const {
    t.enlarged.resize(t.images * pixels(), q.cols());
    for (index_t p = 0; p < t.enlarged.rows(); ++p) t.enlarged.map().row(p) = q.row(source_of(p));
  }

  /// f(pixel, window's place, neighbour) for every neighbour inside the image.
  template <typename F>
  void for_each_neighbour(index_t images, F&& f) const {
    for (index_t p = 0; p < images * pixels(); ++p) {
      const index_t row = p % pixels() / options_.width, column = p % options_.width;
      for (index_t place = 0; place < 9; ++place) {
        const index_t down = place / 3 - 1, right = place % 3 - 1;
        if (row + down < 0 || row + down >= options_.height || column + right < 0 || column + right >= options_.width)
          continue;
        f(p, place, p + down * options_.width + right);
      }
    }
  }

  void see(tape& t, const executor_ref& executor) const {
    const index_t Z = options_.code_width;
    t.seen.resize(t.enlarged.rows(), Z);
    if (!options_.convolution) {
      t.seen.map() = t.enlarged.map();
      return;
    }
    t.windows.set_zero(t.enlarged.rows(), 9 * Z);
    for_each_neighbour(t.images, [&](index_t p, index_t place, index_t neighbour) {
      std::copy_n(t.enlarged.row(neighbour), Z, t.windows.row(p) + place * Z);
    });
    linear_forward(std::as_const(t.windows).map(), convolution_, t.seen.map(), executor);
    add_to_rows(t.seen.map(), convolution_bias_);
  }
  /// t.dseen becomes the gradient of the enlarged codes.
  void see_backward(tape& t, const executor_ref& executor) {
    if (!options_.convolution) return;
    const index_t Z = options_.code_width;
    add_column_sums(std::as_const(t.dseen).map(), convolution_bias_.gradient());
    t.dwindows.set_zero(t.dseen.rows(), 9 * Z);
    linear_backward(std::as_const(t.windows).map(), convolution_, std::as_const(t.dseen).map(), t.dwindows.map(),
                    executor);
    t.dseen.set_zero(t.dseen.rows(), Z);
    for_each_neighbour(t.images, [&](index_t p, index_t place, index_t neighbour) {
      kernel::add_scaled(Scalar(1), t.dwindows.row(p) + place * Z, t.dseen.row(neighbour), Z);
    });
  }

  /// f(image's group, its first channel, its first pixel).
  template <typename F>
  void for_each_group(index_t images, const executor_ref& executor, F&& f) const {
    const index_t channels = options_.channels / options_.groups;
    executor.for_work(images * pixels() * options_.channels).parallel_for(images * options_.groups, [&](index_t g) {
      f(g, g % options_.groups * channels, g / options_.groups * pixels());
    });
  }

  void normalize(tokens_in<Scalar> x, tape& t, const executor_ref& executor) const {
    const index_t channels = options_.channels / options_.groups;
    const auto count = static_cast<Scalar>(pixels() * channels);
    t.normalized.resize(x.rows(), x.cols());
    t.inverse.resize(t.images * options_.groups);
    for_each_group(t.images, executor, [&](index_t g, index_t first, index_t top) {
      const auto block = x.block(top, first, pixels(), channels);
      const Scalar mean = block.sum() / count;
      t.inverse[g] =
          1 / std::sqrt((block.array() - mean).square().sum() / count + static_cast<Scalar>(options_.epsilon));
      t.normalized.map().block(top, first, pixels(), channels) = (block.array() - mean) * t.inverse[g];
    });
  }
  /// d, the gradient of the normalised numbers, becomes that of x.
  void normalize_backward(tokens_out<Scalar> d, tape& t, const executor_ref& executor) const {
    const index_t channels = options_.channels / options_.groups;
    const auto count = static_cast<Scalar>(pixels() * channels);
    for_each_group(t.images, executor, [&](index_t g, index_t first, index_t top) {
      auto block = d.block(top, first, pixels(), channels);
      const auto n = t.normalized.map().block(top, first, pixels(), channels);
      const Scalar mean = block.sum() / count, along = block.cwiseProduct(n).sum() / count;
      block = ((block.array() - mean - n.array() * along) * t.inverse[g]).eval();
    });
  }

  modulated_norm_options options_;
  parameter<Scalar> gain_, bias_, scale_, scale_bias_, shift_, shift_bias_, convolution_, convolution_bias_;
};

}  // namespace sluice::inline SLUICE_ISA
