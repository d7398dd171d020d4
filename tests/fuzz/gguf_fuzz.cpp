// Any bytes are either refused with a file_error or are a GGUF file whose values and tensors can all be read. The bytes
// are read where the fuzzer has put them, so AddressSanitizer sees every step beyond them.
#include <sluice/io/gguf_reader.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "demand.hpp"

using sluice::test::demand;

namespace {

/// Reads everything in a value and gives how many bytes that is, by what it says of itself.
std::size_t read_value(const sluice::gguf_value& value) {
  if (const auto text = value.text()) {
    demand(std::string(*text).size() == text->size());  // a copy goes through all of it
    return 8 + text->size();
  }
  const bool is_number = value.integer() || value.number() || value.boolean();
  if (value.type() != sluice::gguf_type::array) {
    demand(is_number || value.type() == sluice::gguf_type::u64);
    return value.length();
  }
  demand(!is_number);
  std::size_t bytes = 12;
  value.for_each([&](const sluice::gguf_value& element) { bytes += read_value(element); });
  return bytes;
}

void read_tensor(const sluice::gguf_reader& file, const sluice::tensor_info& tensor) {
  demand(file.find(tensor.name) == &tensor);
  const std::string obstacle = sluice::safetensors_reader::obstacle<float>(tensor, tensor.elements());
  try {
    const std::vector<float> values = file.read_vector(tensor.name);
    demand(obstacle.empty() && values.size() == tensor.elements());
    if (values.empty()) return;
    float last = 0;  // any element alone is the one that all of them have
    sluice::safetensors_reader::copy(tensor, values.size() - 1, std::span(&last, 1));
    demand(std::memcmp(&last, &values.back(), sizeof last) == 0);
  } catch (const sluice::file_error&) {
    demand(!obstacle.empty());
  }
}

std::optional<sluice::gguf_reader> parse(std::span<const std::byte> bytes) {
  try {
    return sluice::gguf_reader::from_bytes(bytes, "fuzz");
  } catch (const sluice::file_error& error) {
    demand(std::strlen(error.what()) < 2000);
    return std::nullopt;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::optional<sluice::gguf_reader> file = parse(std::as_bytes(std::span<const std::uint8_t>(data, size)));
  if (!file) return 0;
  for (const auto& [key, value] : file->contents().metadata) demand(read_value(value) == value.length());
  for (const sluice::tensor_info& tensor : file->tensors()) read_tensor(*file, tensor);
  return 0;
}
