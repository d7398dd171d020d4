/// A convolution as an expert: a row is an image, every output pixel a linear map of the window around it.
///
///   x [n, C H W]   weight [O,C,kh,kw]   bias [O], optional   y [n, O H' W'], channels first like x
///   y[o,p] = <weight[o], window p of x> + bias[o]               cross-correlation, as deep learning calls convolution
///   dweight[o] += sum over p of dy[o,p] window p;   dbias[o] += sum over p of dy[o,p];   dx: windows added back
///
///   convolution_expert<float> expert({3, 32, 32}, 16, window_shape::square(3, 1, 1));
///   dense_layer plain{expert};                                 an ordinary convolution of every image
///   expert_bank<convolution_expert<float>> bank(4, expert);    channels in four groups, of which a router chooses
///
/// Windows are gathered some at a time (expert/images/image_windows.hpp) into `saved`, which is scratch: backward
/// gathers them again, for that costs a part in O of the products. Images do not see each other and n may be 0; NaN
/// stays in its image. Initial values: normal with deviation 1/sqrt(C kh kw), bias zero.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/expert/images/image_windows.hpp>
#include <sluice/kernel/gemm.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class convolution_expert {
public:
  using scalar = Scalar;
  struct options {
    bool bias = false;
  };

  /// Throws std::invalid_argument unless O >= 1 and the window fits into the image.
  convolution_expert(image_shape image, index_t channels, window_shape window, options o = {})
      : windows_(image, window), has_bias_(o.bias) {
    if (channels < 1) throw_invalid("a convolution needs output channels >= 1, not ", channels);
    checked_product(channels, windows_.count());
    weight_ = {{channels, image.channels, window.height, window.width},
               parameter_role::weight,
               initial_values::normal(1 / std::sqrt(static_cast<double>(windows_.size())))};
    if (has_bias_) bias_ = {{channels}, parameter_role::vector};
  }

  index_t inputs() const noexcept { return windows_.image().size(); }
  index_t outputs() const noexcept { return weight_.rows() * windows_.count(); }
  /// [O,H',W']
  image_shape output_image() const noexcept { return {weight_.rows(), windows_.rows(), windows_.columns()}; }
  /// Some windows and their gradients.
  index_t saved_columns() const noexcept { return 2 * together() * windows_.size(); }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar> saved) const {
    const index_t positions = windows_.count(), size = windows_.size(), channels = weight_.rows();
    for (index_t r = 0; r < x.rows(); ++r) {
      Scalar* const out = &y(r, 0);
      Scalar* const rows = &saved(r, 0);
      for_parts([&](index_t begin, index_t end) {
        windows_.gather(x.data() + r * x.outerStride(), begin, end, rows);
        kernel::multiply_nt(channels, end - begin, size, weight_.data(), size, rows, size, out + begin, positions);
      });
      if (has_bias_)
        for (index_t o = 0; o < channels; ++o)
          for (index_t p = 0; p < positions; ++p) out[o * positions + p] += bias_.data()[o];
    }
  }

  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) {
    const index_t positions = windows_.count(), size = windows_.size(), channels = weight_.rows();
    Scalar* const dweight = weight_.is_learned() ? weight_.gradient().data() : nullptr;
    Scalar* const dbias = has_bias_ && bias_.is_learned() ? bias_.gradient().data() : nullptr;
    for (index_t r = 0; r < x.rows(); ++r) {
      const Scalar* const upstream = dy.data() + r * dy.outerStride();
      Scalar* const rows = &saved(r, 0);
      Scalar* const drows = rows + together() * size;
      std::fill_n(&dx(r, 0), inputs(), Scalar(0));
      for_parts([&](index_t begin, index_t end) {
        kernel::multiply_tn(end - begin, size, channels, upstream + begin, positions, std::as_const(weight_).data(),
                            size, drows, size);
        windows_.add_back(drows, begin, end, &dx(r, 0));
        if (dweight == nullptr) return;
        windows_.gather(x.data() + r * x.outerStride(), begin, end, rows);
        kernel::multiply_nn(channels, size, end - begin, upstream + begin, positions, rows, size, dweight, size,
                            kernel::write::accumulate);
      });
      if (dbias != nullptr)
        for (index_t o = 0; o < channels; ++o)
          for (index_t p = 0; p < positions; ++p) dbias[o] += upstream[o * positions + p];
    }
  }

  const image_windows& windows() const noexcept { return windows_; }
  parameter<Scalar>& weight() noexcept { return weight_; }
  parameter<Scalar>& bias() noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
    if (self.has_bias_) visit("bias", self.bias_);
  }

private:
  /// Windows that are gathered at a time: enough for the kernels, few enough to stay in the cache.
  index_t together() const noexcept { return (std::min<index_t>)(32, windows_.count()); }

  template <typename F>
  void for_parts(F&& f) const {
    for (index_t begin = 0; begin < windows_.count(); begin += together())
      f(begin, (std::min)(begin + together(), windows_.count()));
  }

  image_windows windows_;
  bool has_bias_;
  parameter<Scalar> weight_;
  parameter<Scalar> bias_;
};

static_assert(DifferentiableExpert<convolution_expert<float>>);

}  // namespace sluice::inline SLUICE_ISA
