/// safetensors_reader: typed, checked access to the tensors of a safetensors file.
///
///   sluice::safetensors_reader file("layer.safetensors");        // maps the file and checks all of its header
///   std::vector<float> w = file.read_vector<float>("router.weight");
///
/// read<float> and read<double> take F32, F64, F16 and BF16; read<int64_t> takes I64 and I32; every other T takes its
/// own type only. F64 read as float rounds to nearest and refuses finite values beyond float's range. NaN and
/// infinities are passed on. Errors are file_error; a read that throws has written nothing. Const calls may run in
/// parallel.
#pragma once

#include <sluice/core/half.hpp>
#include <sluice/core/isa.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/element_conversion.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/mapped_file.hpp>
#include <sluice/io/safetensors_contents.hpp>
#include <sluice/io/tensor_info.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class safetensors_reader {
public:
  explicit safetensors_reader(const std::filesystem::path& path)
      : name_(path.string()), file_(path), contents_(parse_safetensors(file_.bytes(), name_)) {}

  /// Reads a file that is already in memory. The bytes are referred to, not copied; `name` stands in messages.
  static safetensors_reader from_bytes(std::span<const std::byte> bytes, std::string name) {
    return safetensors_reader(bytes, std::move(name));
  }

  const std::string& file_name() const noexcept { return name_; }
  const std::vector<tensor_info>& tensors() const noexcept { return contents_.tensors; }
  const std::map<std::string, std::string>& metadata() const noexcept { return contents_.metadata; }

  /// The tensor of that name, or nullptr.
  const tensor_info* find(std::string_view name) const noexcept {
    const auto& tensors = contents_.tensors;
    const auto found = std::lower_bound(contents_.by_name.begin(), contents_.by_name.end(), name,
                                        [&](std::size_t i, std::string_view n) { return tensors[i].name < n; });
    return found != contents_.by_name.end() && tensors[*found].name == name ? &tensors[*found] : nullptr;
  }

  bool contains(std::string_view name) const noexcept { return find(name) != nullptr; }

  const tensor_info& at(std::string_view name) const {
    const tensor_info* const tensor = find(name);
    if (tensor == nullptr) throw file_error(name_, name, "is not in the file");
    return *tensor;
  }

  /// Why read<T> would refuse to fill `count` elements from the tensor; empty if it would not.
  template <StorableValue T>
  static std::string obstacle(const tensor_info& tensor, std::size_t count);

  /// What read<T> does once there is no obstacle.
  template <StorableValue T>
  static void copy(const tensor_info& tensor, std::span<T> out) noexcept {
    copy(tensor, 0, out);
  }

  /// The same for the elements from `first` on, as many as `out` takes.
  template <StorableValue T>
  static void copy(const tensor_info& tensor, std::size_t first, std::span<T> out) noexcept;

  /// Copies the tensor into `out`, whose size must be the number of its elements.
  template <StorableValue T>
  void read(std::string_view name, std::span<T> out) const {
    const tensor_info& tensor = at(name);
    if (const std::string problem = obstacle<T>(tensor, out.size()); !problem.empty())
      throw file_error(name_, name, problem);
    copy<T>(tensor, out);
  }

  template <StorableValue T>
  std::vector<T> read_vector(std::string_view name) const {
    const tensor_info& tensor = at(name);
    // If the type does not convert, read refuses whatever the count.
    std::vector<T> out(converts<T>(tensor.number_type()) ? tensor.elements() : 0);
    read<T>(name, std::span<T>(out));
    return out;
  }

private:
  safetensors_reader(std::span<const std::byte> bytes, std::string name)
      : name_(std::move(name)), contents_(parse_safetensors(bytes, name_)) {}

  // One test per kind of T, with no test of T's own type before it: GCC 12 merges the halves that float and double
  // would share (-fpartial-inlining, then -fipa-icf) although each half relies on what its own first test has ruled
  // out.
  template <StorableValue T>
  static constexpr bool converts(data_type from) {
    if constexpr (std::floating_point<T>)
      return from == data_type::f32 || from == data_type::f64 || from == data_type::f16 || from == data_type::bf16;
    else if constexpr (data_type_of<T> == data_type::i64)
      return from == data_type::i64 || from == data_type::i32;
    else
      return from == data_type_of<T>;
  }

  static void copy_decoded(const tensor_info& tensor, std::size_t first, std::span<double> out) noexcept {
    std::array<float, 256> piece;
    for (std::size_t done = 0; done < out.size(); done += piece.size()) {
      const auto some = std::span(piece).first((std::min)(piece.size(), out.size() - done));
      tensor.decoder->read(first + done, some);
      std::copy(some.begin(), some.end(), out.begin() + static_cast<std::ptrdiff_t>(done));
    }
  }

  std::string name_;
  mapped_file file_;  // empty when the bytes belong to the caller
  safetensors_contents contents_;
};

template <StorableValue T>
std::string safetensors_reader::obstacle(const tensor_info& tensor, std::size_t count) {
  if (!converts<T>(tensor.number_type()))
    return "is " + detail::printable(tensor.type_name(), 40) + ", cannot be read as " +
           std::string(name_of(data_type_of<T>));
  if (tensor.elements() != count)
    return "has " + std::to_string(tensor.elements()) + " elements of shape " + detail::shape_text(tensor.shape) +
           ", expected " + std::to_string(count);
  if (std::same_as<T, float> && tensor.dtype == data_type::f64)
    for (std::size_t i = 0; i < count; ++i)
      if (const auto value = detail::load_element<double>(tensor.bytes, i); detail::exceeds_float(value))
        return "element " + std::to_string(i) + " is " + detail::short_text(value) + ", too large for float";
  return {};
}

template <StorableValue T>
void safetensors_reader::copy(const tensor_info& tensor, std::size_t first, std::span<T> out) noexcept {
  if (out.empty()) return;
  if constexpr (std::same_as<T, float>) {
    if (tensor.decoder != nullptr) return tensor.decoder->read(first, out);
  } else if constexpr (std::same_as<T, double>) {
    if (tensor.decoder != nullptr) return copy_decoded(tensor, first, out);
  }
  const std::size_t size = size_of(tensor.dtype);
  const std::span<const std::byte> bytes = tensor.bytes.subspan(first * size, out.size() * size);
  if (tensor.dtype == data_type_of<T>) {
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return;
  }
  if constexpr (std::floating_point<T>) {
    const auto unchanged = [](auto value) { return value; };
    if (tensor.dtype == data_type::f16)
      detail::convert_elements<float16>(bytes, out, [](float16 value) { return to_float(value); });
    else if (tensor.dtype == data_type::bf16)
      detail::convert_elements<bfloat16>(bytes, out, [](bfloat16 value) { return to_float(value); });
    else if (tensor.dtype == data_type::f32)
      detail::convert_elements<float>(bytes, out, unchanged);
    else
      detail::convert_elements<double>(bytes, out, unchanged);
  } else if constexpr (data_type_of<T> == data_type::i64) {
    detail::convert_elements<std::int32_t>(bytes, out, [](std::int32_t value) { return value; });
  }
}

}  // namespace sluice::inline SLUICE_ISA
