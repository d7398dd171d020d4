/// The windows of an image: which numbers each of them covers, gathered into rows and added back.
///
///   image [C,H,W] channels first, in one row of C H W numbers; a window covers C kh kw of them
///   windows [P, C kh kw]   P = H' W', position (i,j) begins at pixel (i stride - padding, j stride - padding)
///   H' = (H + 2 padding - kh) / stride + 1, rounded down, and W' likewise
///
/// Padding is zeros. A convolution is a linear map of these rows (expert/images/convolution.hpp); with a stride as
/// large as the kernel they are the patches of an image. Windows are gathered some at a time, so that they stay in the
/// cache.
#pragma once

#include <sluice/core/checked_size.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

struct image_shape {
  index_t channels = 1;
  index_t height = 1;
  index_t width = 1;

  index_t size() const noexcept { return channels * height * width; }
};

struct window_shape {
  index_t height = 1;
  index_t width = 1;
  index_t stride = 1;
  index_t padding = 0;

  /// A square one.
  static window_shape square(index_t side, index_t stride = 1, index_t padding = 0) {
    return {side, side, stride, padding};
  }
};

class image_windows {
public:
  /// Throws std::invalid_argument if the window does not fit into the padded image.
  image_windows(image_shape image, window_shape window) : image_(image), window_(window) {
    if (image.channels < 1 || image.height < 1 || image.width < 1)
      throw_invalid("an image needs channels, height and width >= 1, not ", image.channels, ", ", image.height, ", ",
                    image.width);
    if (window.height < 1 || window.width < 1 || window.stride < 1 || window.padding < 0)
      throw_invalid("a window needs height, width and stride >= 1 and padding >= 0, not ", window.height, ", ",
                    window.width, ", ", window.stride, " and ", window.padding);
    if (window.height > image.height + 2 * window.padding || window.width > image.width + 2 * window.padding)
      throw_invalid("a window of ", window.height, " x ", window.width, " does not fit into an image of ", image.height,
                    " x ", image.width, " with padding ", window.padding);
    checked_product(checked_product(image.channels, image.height), image.width);
    checked_product(checked_product(size(), rows()), columns());
  }

  const image_shape& image() const noexcept { return image_; }
  const window_shape& window() const noexcept { return window_; }
  /// H' and W'.
  index_t rows() const noexcept { return (image_.height + 2 * window_.padding - window_.height) / window_.stride + 1; }
  index_t columns() const noexcept { return (image_.width + 2 * window_.padding - window_.width) / window_.stride + 1; }
  /// P
  index_t count() const noexcept { return rows() * columns(); }
  /// C kh kw
  index_t size() const noexcept { return image_.channels * window_.height * window_.width; }

  /// Writes windows begin .. end of an image into rows of size() numbers, one behind the other.
  template <typename Scalar>
  void gather(const Scalar* image, index_t begin, index_t end, Scalar* rows_out) const {
    for_each_line(begin, end, [&](index_t line, index_t before, index_t inside, index_t pixel) {
      Scalar* const to = rows_out + line;
      std::fill_n(to, before, Scalar(0));
      std::copy_n(image + pixel, inside, to + before);
      std::fill(to + before + inside, to + window_.width, Scalar(0));
    });
  }

  /// The adjoint: adds rows of windows begin .. end into the image.
  template <typename Scalar>
  void add_back(const Scalar* rows_in, index_t begin, index_t end, Scalar* image) const {
    for_each_line(begin, end, [&](index_t line, index_t before, index_t inside, index_t pixel) {
      for (index_t i = 0; i < inside; ++i) image[pixel + i] += rows_in[line + before + i];
    });
  }

private:
  /// f(line, before, inside, pixel) for every line of kw numbers of these windows: `line` is where it begins in the
  /// rows, `before` numbers of it lie left of the image, `inside` ones in it from `pixel` on. Lines above or below the
  /// image have none inside.
  template <typename F>
  void for_each_line(index_t begin, index_t end, F&& f) const {
    index_t line = 0;
    for (index_t p = begin; p < end; ++p) {
      const index_t top = p / columns() * window_.stride - window_.padding;
      const index_t left = p % columns() * window_.stride - window_.padding;
      const index_t before = std::clamp<index_t>(-left, 0, window_.width);
      const index_t inside = std::clamp<index_t>(image_.width - left, before, window_.width) - before;
      for (index_t c = 0; c < image_.channels; ++c)
        for (index_t k = 0; k < window_.height; ++k, line += window_.width) {
          const index_t y = top + k;
          const bool is_inside = inside > 0 && y >= 0 && y < image_.height;
          const index_t pixel = is_inside ? (c * image_.height + y) * image_.width + left + before : 0;
          f(line, before, is_inside ? inside : 0, pixel);
        }
    }
  }

  image_shape image_;
  window_shape window_;
};

}  // namespace sluice::inline SLUICE_ISA
