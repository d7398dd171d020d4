// Any bytes are either refused with a file_error or are a file whose tensors can all be read and written again
// unchanged. The bytes are read where the fuzzer has put them, so AddressSanitizer sees every step beyond them.
#include <sluice/io/safetensors.hpp>

#include <algorithm>
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

/// Reads the tensor as T; a refusal must be a file_error and the same one that `obstacle` foretells.
template <typename T>
void read_as(const sluice::safetensors_reader& file, const sluice::tensor_info& tensor) {
  const bool refused = !sluice::safetensors_reader::obstacle<T>(tensor, tensor.elements()).empty();
  try {
    const std::vector<T> values = file.read_vector<T>(tensor.name);
    demand(!refused && values.size() == tensor.elements());
  } catch (const sluice::file_error&) {
    demand(refused);
  }
}

void check_same(const sluice::safetensors_reader& a, const sluice::safetensors_reader& b) {
  demand(a.metadata() == b.metadata() && a.tensors().size() == b.tensors().size());
  for (const sluice::tensor_info& tensor : a.tensors()) {
    const sluice::tensor_info& twin = b.at(tensor.name);
    demand(twin.dtype == tensor.dtype && twin.type_name() == tensor.type_name() && twin.shape == tensor.shape);
    demand(std::ranges::equal(twin.bytes, tensor.bytes));
  }
}

std::optional<sluice::safetensors_reader> parse(std::span<const std::byte> bytes) {
  try {
    return sluice::safetensors_reader::from_bytes(bytes, "fuzz");
  } catch (const sluice::file_error& error) {
    demand(std::strlen(error.what()) < 2000);
    return std::nullopt;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::optional<sluice::safetensors_reader> file =
      parse(std::as_bytes(std::span<const std::uint8_t>(data, size)));
  if (!file) return 0;

  sluice::safetensors_writer copy;
  for (const auto& [key, value] : file->metadata()) copy.metadata(key, value);
  for (const sluice::tensor_info& tensor : file->tensors()) {
    read_as<float>(*file, tensor);
    read_as<double>(*file, tensor);
    read_as<std::int64_t>(*file, tensor);
    read_as<std::uint8_t>(*file, tensor);
    copy.add(tensor);
  }
  const std::vector<std::byte> copied = copy.to_bytes();
  check_same(*file, sluice::safetensors_reader::from_bytes(copied, "copy"));
  return 0;
}
