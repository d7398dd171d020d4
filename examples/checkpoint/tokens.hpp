/// The token vectors that layers are fed: from a safetensors tensor, from CSV, or drawn from a seed.
#pragma once

#include <sluice/core/random.hpp>
#include <sluice/core/types.hpp>
#include <sluice/io/mapped_file.hpp>
#include <sluice/io/safetensors_reader.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../shared/error.hpp"
#include "../shared/text.hpp"

namespace checkpoint {

using sluice::index_t;

/// Standard normal numbers: a function of seed and position, so the first tokens of a longer draw are those of a shorter.
inline sluice::matrix<float> draw_tokens(index_t tokens, index_t width, std::uint64_t seed) {
  const sluice::random_source random(seed);
  sluice::matrix<float> x(tokens, width);
  for (index_t i = 0; i < x.size(); ++i)
    x.data()[i] = static_cast<float>(random.normal(sluice::random_site::user_site, i));
  return x;
}

/// Ids of tokens, each as likely as any other: for layers that look experts up by them.
inline std::vector<index_t> draw_ids(index_t tokens, index_t vocabulary, std::uint64_t seed) {
  const sluice::random_source random(seed);
  std::vector<index_t> ids;
  for (index_t i = 0; i < tokens; ++i) {
    const double drawn = random.uniform(sluice::random_site("token ids"), i) * static_cast<double>(vocabulary);
    ids.push_back((std::min)(static_cast<index_t>(drawn), vocabulary - 1));
  }
  return ids;
}

namespace detail {

/// "X.safetensors:tensor" as file and tensor; a file that has the whole text as its name comes first.
inline std::pair<std::string, std::string> split_input(const std::string& text) {
  constexpr std::string_view mark = ".safetensors:";
  std::error_code ignored;
  const std::size_t at = text.rfind(mark);
  if (at == std::string::npos || std::filesystem::exists(text, ignored)) return {text, ""};
  const std::size_t colon = at + mark.size() - 1;
  return {text.substr(0, colon), text.substr(colon + 1)};
}

inline sluice::matrix<float> read_tensor(const std::string& path, std::string name, index_t width) {
  const sluice::safetensors_reader file(path);
  if (name.empty()) {
    std::string known;
    for (const auto& tensor : file.tensors())
      if (known.size() < 200) known += (known.empty() ? "" : ", ") + shared::in_quotes(tensor.name);
    if (file.tensors().size() != 1)
      throw sluice::file_error(path, "holds " + std::to_string(file.tensors().size()) +
                                         " tensors, name one as FILE:TENSOR" + (known.empty() ? "" : ": " + known));
    name = file.tensors().front().name;
  }
  const sluice::tensor_info& tensor = file.at(name);
  if (tensor.shape.size() < 2 || tensor.shape.back() != width)
    throw sluice::file_error(path, name,
                             "has shape " + sluice::detail::shape_text(tensor.shape) +
                                 ", tokens for this model are [T, " + std::to_string(width) + "]");
  sluice::matrix<float> x(static_cast<index_t>(tensor.elements()) / width, width);
  file.read<float>(name, {x.data(), static_cast<std::size_t>(x.size())});
  return x;
}

inline sluice::matrix<float> read_csv(const std::string& path, index_t width) {
  const sluice::mapped_file file(path);
  std::string_view rest(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  std::vector<float> numbers;
  index_t line_number = 0;
  while (!rest.empty()) {
    std::string_view line = shared::take_until(rest, '\n');
    const std::string where = "line " + std::to_string(++line_number);
    if (line.ends_with('\r')) line.remove_suffix(1);
    index_t columns = 0;
    for (bool more = true; more; ++columns) {
      more = line.find(',') != std::string_view::npos;
      const std::string_view field = shared::take_until(line, ',');
      float value = 0;
      const auto [end, status] = std::from_chars(field.data(), field.data() + field.size(), value);
      if (status != std::errc() || end != field.data() + field.size())
        throw sluice::file_error(path, where + ", column " + std::to_string(columns + 1) + ": " +
                                           shared::in_quotes(field) + " is not a number that a float can hold");
      numbers.push_back(value);
    }
    if (columns != width)
      throw sluice::file_error(path, where + " has " + std::to_string(columns) +
                                         " numbers, a token of this model has " + std::to_string(width));
  }
  if (numbers.empty()) throw sluice::file_error(path, "holds no tokens");
  return Eigen::Map<const sluice::matrix<float>>(numbers.data(), line_number, width);
}

}  // namespace detail

/// Tokens [T, width] from "X.csv" (a token a line, no header) or "X.safetensors[:TENSOR]". Throws file_error.
inline sluice::matrix<float> read_tokens(const std::string& input, index_t width) {
  if (input.ends_with(".csv")) return detail::read_csv(input, width);
  const auto [file, tensor] = detail::split_input(input);
  return detail::read_tensor(file, tensor, width);
}

/// The same for one layer of a model: of a safetensors file that has "layers.L.x" the layer gets its own. Throws
/// file_error.
inline sluice::matrix<float> read_tokens_of(const std::string& input, const std::string& layer, index_t width) {
  if (const auto [file, tensor] = detail::split_input(input); !input.ends_with(".csv") && tensor.empty())
    if (const std::string own = layer + ".x"; sluice::safetensors_reader(file).contains(own))
      return detail::read_tensor(file, own, width);
  return read_tokens(input, width);
}

}  // namespace checkpoint
