/// gguf_reader: checked access to the keys and tensors of a GGUF file.
///
///   sluice::gguf_reader file("olmoe-Q4_K_M.gguf");            // maps the file and checks all of its header
///   const auto k = file.find_key("olmoe.expert_used_count");  // gguf_value, or nullptr
///   std::vector<float> w = file.read_vector("blk.0.ffn_gate_inp.weight");
///
/// Of every tensor the numbers can be read as float, exactly those that the type defines, if the type is known; a block
/// format has its name in other_type ("Q4_K"). Errors are file_error; const calls may run in parallel. Shapes are
/// slowest first (gguf_contents.hpp).
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/gguf_contents.hpp>
#include <sluice/io/mapped_file.hpp>
#include <sluice/io/safetensors_reader.hpp>
#include <sluice/io/tensor_info.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class gguf_reader {
public:
  explicit gguf_reader(const std::filesystem::path& path)
      : name_(path.string()), file_(path), contents_(parse_gguf(file_.bytes(), name_)) {}

  /// Reads a file that is already in memory. The bytes are referred to, not copied; `name` stands in messages.
  static gguf_reader from_bytes(std::span<const std::byte> bytes, std::string name) {
    return gguf_reader(bytes, std::move(name));
  }

  const std::string& file_name() const noexcept { return name_; }
  const gguf_contents& contents() const noexcept { return contents_; }
  const std::vector<tensor_info>& tensors() const noexcept { return contents_.tensors; }

  /// The value of a key, or nullptr.
  const gguf_value* find_key(std::string_view key) const noexcept {
    const auto found = contents_.metadata.find(key);
    return found == contents_.metadata.end() ? nullptr : &found->second;
  }

  /// The tensor of that name, or nullptr.
  const tensor_info* find(std::string_view name) const noexcept {
    const auto& tensors = contents_.tensors;
    const auto found = std::lower_bound(contents_.by_name.begin(), contents_.by_name.end(), name,
                                        [&](std::size_t i, std::string_view n) { return tensors[i].name < n; });
    return found != contents_.by_name.end() && tensors[*found].name == name ? &tensors[*found] : nullptr;
  }

  const tensor_info& at(std::string_view name) const {
    const tensor_info* const tensor = find(name);
    if (tensor == nullptr) throw file_error(name_, name, "is not in the file");
    return *tensor;
  }

  std::vector<float> read_vector(std::string_view name) const {
    const tensor_info& tensor = at(name);
    if (const std::string problem = safetensors_reader::obstacle<float>(tensor, tensor.elements()); !problem.empty())
      throw file_error(name_, name, problem);
    std::vector<float> out(tensor.elements());
    safetensors_reader::copy<float>(tensor, out);
    return out;
  }

private:
  gguf_reader(std::span<const std::byte> bytes, std::string name)
      : name_(std::move(name)), contents_(parse_gguf(bytes, name_)) {}

  std::string name_;
  mapped_file file_;  // empty when the bytes belong to the caller
  gguf_contents contents_;
};

}  // namespace sluice::inline SLUICE_ISA
