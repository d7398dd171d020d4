/// Vectors to compress or to search: rows of a CSV file, patches of a picture, a matrix of a safetensors file.
///
///   .csv                 a vector a line, numbers separated by commas, all lines equally long
///   .pgm, .ppm           binary (P5, P6), 8 bits; squares of --patch pixels a side, what is left at the edges is cut off
///   .safetensors         the first matrix of the file, or the one that is named (where sluice was built with io/)
///
/// The project's own digits.csv has a class behind the pixels, which is left out. Anything else is an input_error that
/// names the file and what is wrong with it.
#pragma once

#include <sluice/core/types.hpp>

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../shared/error.hpp"
#include "../shared/file.hpp"
#include "../shared/text.hpp"

#if __has_include(<nlohmann/json.hpp>)
#include <sluice/io/safetensors_reader.hpp>
#define CODEBOOKS_READ_SAFETENSORS 1
#endif

namespace codebooks {

using shared::input_error;
using sluice::index_t, sluice::matrix;

struct vectors {
  matrix<float> rows;
  index_t side = 0;      ///< pixels a side, if a vector is a square of a picture
  index_t channels = 1;  ///< numbers a pixel
};

namespace detail {

inline float number_in(std::string_view field, const std::string& where) {
  while (field.starts_with(' ')) field.remove_prefix(1);
  while (field.ends_with(' ') || field.ends_with('\r')) field.remove_suffix(1);
  float value = 0;
  const auto [end, status] = std::from_chars(field.data(), field.data() + field.size(), value);
  if (status != std::errc() || end != field.data() + field.size())
    throw input_error(where + ": " + shared::in_quotes(field) + " is not a number");
  return value;
}

inline vectors read_csv(const std::string& path, bool has_class) {
  const std::string text = shared::read_file(path, std::size_t{1} << 30);
  std::vector<float> numbers;
  index_t columns = 0, line = 0;
  for (std::string_view rest = text; !rest.empty();) {
    std::string_view row = shared::take_until(rest, '\n');
    const std::string where = path + ":" + std::to_string(++line);
    if (row.empty() || row == "\r") throw input_error(where + ": the line is empty");
    index_t count = 0;
    while (!row.empty()) numbers.push_back(number_in(shared::take_until(row, ','), where)), ++count;
    if (line == 1) columns = count;
    if (count != columns)
      throw input_error(where + ": " + std::to_string(count) + " numbers, the first line has " +
                        std::to_string(columns));
  }
  vectors v;
  const index_t width = has_class ? columns - 1 : columns;
  v.rows = Eigen::Map<const matrix<float>>(numbers.data(), line, columns).leftCols(width);
  if (has_class) {
    v.rows /= 16;  // the darkest pixel
    v.side = 8;
  }
  return v;
}

/// A number of a picture's head; comments begin with #.
inline index_t head_number(const std::string& text, std::size_t& at, const std::string& path) {
  while (at < text.size() && (std::isspace(static_cast<unsigned char>(text[at])) != 0 || text[at] == '#'))
    at = text[at] == '#' ? text.find('\n', at) : at + 1;
  index_t value = 0;
  if (at >= text.size()) throw input_error(path + ": the head of the picture ends early");
  const auto [end, status] = std::from_chars(text.data() + at, text.data() + text.size(), value);
  if (status != std::errc() || value < 1 || value > 1 << 20)
    throw input_error(path + ": the head of the picture has no sizes");
  at = static_cast<std::size_t>(end - text.data());
  return value;
}

inline vectors read_picture(const std::string& path, index_t patch) {
  const std::string text = shared::read_file(path, std::size_t{1} << 30);
  if (!text.starts_with("P5") && !text.starts_with("P6"))
    throw input_error(path + ": not a binary PGM or PPM picture (P5, P6)");
  const index_t channels = text[1] == '5' ? 1 : 3;
  std::size_t at = 2;
  const index_t width = head_number(text, at, path), height = head_number(text, at, path);
  if (head_number(text, at, path) != 255)
    throw input_error(path + ": only pictures with 255 as the largest value are read");
  ++at;
  if (text.size() - at < static_cast<std::size_t>(width * height * channels))
    throw input_error(path + ": the picture should have " + std::to_string(width) + " x " + std::to_string(height) +
                      " pixels and ends early");
  const index_t across = width / patch, down = height / patch;
  if (across * down < 1)
    throw input_error(path + ": the picture is smaller than a patch of " + std::to_string(patch) + " pixels");
  vectors v;
  v.side = patch;
  v.channels = channels;
  v.rows.resize(across * down, patch * patch * channels);
  for (index_t r = 0; r < v.rows.rows(); ++r)
    for (index_t i = 0; i < v.rows.cols(); ++i) {
      const index_t y = r / across * patch + i / channels / patch, x = r % across * patch + i / channels % patch;
      const auto place = at + static_cast<std::size_t>((y * width + x) * channels + i % channels);
      v.rows(r, i) = static_cast<float>(static_cast<unsigned char>(text[place])) / 255;
    }
  return v;
}

inline vectors read_safetensors([[maybe_unused]] const std::string& path, [[maybe_unused]] const std::string& name) {
#ifdef CODEBOOKS_READ_SAFETENSORS
  try {
    const sluice::safetensors_reader file(path);
    for (const auto& info : file.tensors()) {
      if (info.shape.size() != 2 || (!name.empty() && info.name != name)) continue;
      const auto numbers = file.read_vector<float>(info.name);
      return {.rows = Eigen::Map<const matrix<float>>(numbers.data(), info.shape[0], info.shape[1])};
    }
  } catch (const std::exception& e) {
    throw input_error(e.what());
  }
  throw input_error(
      path + (name.empty() ? ": there is no matrix in it" : ": there is no matrix called " + shared::in_quotes(name)));
#else
  throw input_error(path + ": this program was built without nlohmann-json and reads no safetensors");
#endif
}

}  // namespace detail

/// `is_digits`: the project's own file. `tensor` is for safetensors, empty: the first matrix.
inline vectors read_vectors(const std::string& path, bool is_digits, index_t patch, const std::string& tensor = "") {
  vectors v = path.ends_with(".pgm") || path.ends_with(".ppm") ? detail::read_picture(path, patch)
              : path.ends_with(".safetensors")                 ? detail::read_safetensors(path, tensor)
                                                               : detail::read_csv(path, is_digits);
  if (v.rows.rows() < 8)
    throw input_error(path + ": " + std::to_string(v.rows.rows()) + " vectors, at least 8 are needed");
  if (!v.rows.allFinite()) throw input_error(path + ": a number is infinite or NaN");
  return v;
}

}  // namespace codebooks
