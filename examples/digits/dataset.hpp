/// Reads the handwritten digits and cuts each image into the tokens that the model sees.
///
/// File: one image a line, 65 whole numbers separated by commas: 64 pixels (8x8, row by row, 0..16), then the class
/// (0..9). Lines may end in LF or CRLF, and the last one may lack its end. Anything else is an input_error that names
/// the file, the line, the column and the text found there: a model trained on half a file would be worse than no
/// model.
#pragma once

#include <Eigen/Core>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "shared.hpp"

namespace digits {

using row_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

inline constexpr int image_side = 8;
inline constexpr int pixels_per_image = image_side * image_side;
inline constexpr int classes = 10;
inline constexpr int darkest = 16;

/// Images and what they show; row i of `pixels` (values 0..1) is a picture of the digit labels[i].
struct labelled_images {
  row_matrix pixels;
  std::vector<int> labels;

  std::ptrdiff_t size() const { return static_cast<std::ptrdiff_t>(labels.size()); }
};

/// Every fourth image (index mod 4 = 3) is kept for the test and never trained on.
struct dataset {
  labelled_images train, test;
};

/// How an image becomes tokens: sixteen patches of 2x2 pixels, or its eight rows.
enum class patch_shape { square, row };

constexpr int tokens_per_image(patch_shape p) { return p == patch_shape::square ? 16 : 8; }
constexpr int token_width(patch_shape p) { return pixels_per_image / tokens_per_image(p); }

namespace detail {

/// One line's 65 numbers, appended to `numbers`. `where` is "file:line" for messages.
inline void parse_line(std::string_view line, const std::string& where, std::vector<std::uint8_t>& numbers) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  if (line.empty()) throw input_error(where + ": the line is empty");
  constexpr int columns = pixels_per_image + 1;
  bool more = true;
  for (int column = 1; column <= columns; ++column) {
    if (!more)
      throw input_error(where + ": the line ends after column " + std::to_string(column - 1) + " of " +
                        std::to_string(columns));
    more = line.find(',') != std::string_view::npos;
    const std::string_view field = take_until(line, ',');
    const unsigned limit = column == columns ? classes - 1 : darkest;
    unsigned value = 0;
    const auto [end, status] = std::from_chars(field.data(), field.data() + field.size(), value);
    if (status != std::errc() || end != field.data() + field.size() || value > limit)
      throw input_error(where + ", column " + std::to_string(column) + ": " + in_quotes(field) + " is not a " +
                        (column == columns ? "class" : "pixel") + " (a whole number from 0 to " +
                        std::to_string(limit) + ")");
    numbers.push_back(static_cast<std::uint8_t>(value));
  }
  if (more)
    throw input_error(where + ": text after the last column, " + std::to_string(columns) + ": " + in_quotes(line));
}

}  // namespace detail

/// Reads `path` and splits it. Throws input_error as said above, also when there are fewer than four images.
inline dataset read_dataset(const std::string& path) {
  const std::string text = shared::read_file(path, std::size_t{64} << 20);  // 250 times the real file
  std::vector<std::uint8_t> numbers;
  std::ptrdiff_t images = 0;
  for (std::string_view rest = text; !rest.empty(); ++images)
    detail::parse_line(take_until(rest, '\n'), path + ":" + std::to_string(images + 1), numbers);
  if (images < 4)
    throw input_error(path + ": " + std::to_string(images) +
                      " images; every fourth one tests, so at least 4 are needed");

  dataset data;
  const std::ptrdiff_t tests = images / 4;
  data.test.pixels.resize(tests, pixels_per_image);
  data.train.pixels.resize(images - tests, pixels_per_image);
  for (std::ptrdiff_t i = 0; i < images; ++i) {
    labelled_images& part = i % 4 == 3 ? data.test : data.train;
    const std::uint8_t* row = numbers.data() + i * (pixels_per_image + 1);
    for (int p = 0; p < pixels_per_image; ++p)
      part.pixels(part.size(), p) = static_cast<float>(row[p]) / static_cast<float>(darkest);
    part.labels.push_back(row[pixels_per_image]);
  }
  return data;
}

/// Cuts the images picked by `chosen` (row numbers) into tokens: image i becomes the rows i*N .. i*N+N-1 of `tokens`,
/// where N = tokens_per_image(shape), patches in reading order, pixels shifted to -0.5..0.5 so that they are about
/// centred.
inline void cut_into_tokens(const labelled_images& images, const std::vector<std::ptrdiff_t>& chosen, patch_shape shape,
                            row_matrix& tokens) {
  const int height = shape == patch_shape::square ? 2 : 1;
  const int width = token_width(shape) / height;
  tokens.resize(static_cast<std::ptrdiff_t>(chosen.size()) * tokens_per_image(shape), token_width(shape));
  std::ptrdiff_t t = 0;
  for (const std::ptrdiff_t i : chosen)
    for (int top = 0; top < image_side; top += height)
      for (int left = 0; left < image_side; left += width, ++t)
        for (int y = 0; y < height; ++y)
          for (int x = 0; x < width; ++x)
            tokens(t, y * width + x) = images.pixels(i, (top + y) * image_side + left + x) - 0.5f;
}

}  // namespace digits
