/// gguf_writer: collects keys and tensors by reference and writes them as one GGUF file, all or nothing.
///
///   sluice::gguf_writer file;
///   file.key("general.architecture", "olmoe");
///   file.key("olmoe.expert_count", std::uint32_t{64});
///   file.add("blk.0.ffn_gate_exps.weight", {64, 1024, 2048}, sluice::ggml_type::q8_0, blocks);
///   file.save("model.gguf");
///
/// Shapes are slowest first, and turned around for the file. Bytes are the tensor's own in the type that is given,
/// whole blocks of rows (ggml_blocks.hpp makes those of Q8_0 and Q4_0); they are referred to and must live until save.
/// Equal calls give equal files: version 3, keys and tensors in the order of the calls, data aligned to
/// general.alignment, 32 unless that key is set. Wrong arguments throw std::invalid_argument and change nothing; save
/// throws file_error and then leaves an existing file as it was (atomic_file.hpp). What is written, parse_gguf accepts.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/isa.hpp>
#include <sluice/io/atomic_file.hpp>
#include <sluice/io/gguf_contents.hpp>
#include <sluice/io/gguf_value.hpp>
#include <sluice/io/tensor_info.hpp>
#include <sluice/kernel/format/ggml_types.hpp>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class gguf_writer {
public:
  /// A number of one of the format's types, or true or false. Every key once.
  template <typename T>
    requires std::integral<T> || std::same_as<T, float> || std::same_as<T, double>
  void key(const std::string& name, T value) {
    if constexpr (std::same_as<T, std::uint32_t>)
      if (name == alignment_key) {
        if (value < 8 || !std::has_single_bit(value))
          throw_invalid("gguf_writer: an alignment is a power of two from 8 on, not ", value);
        alignment_ = value;
      }
    if (name == alignment_key && !std::same_as<T, std::uint32_t>)
      throw_invalid("gguf_writer: ", alignment_key, " must be a U32");
    std::string bytes;
    append(bytes, value);
    add_key(name, type_of<T>(), bytes);
  }
  void key(const std::string& name, std::string_view text) {
    if (name == alignment_key) throw_invalid("gguf_writer: ", alignment_key, " must be a U32");
    add_key(name, gguf_type::string, with_length(text));
  }
  void key(const std::string& name, const char* text) { key(name, std::string_view(text)); }
  /// The same as another file has it, whatever its type.
  void key(const std::string& name, const gguf_value& value) {
    if (name == alignment_key) return key(name, static_cast<std::uint32_t>(value.integer().value_or(0)));
    const auto bytes = value.bytes();
    add_key(name, value.type(), std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }

  void add(const std::string& name, const std::vector<std::int64_t>& shape, ggml_type type,
           std::span<const std::byte> bytes) {
    const auto refuse = [&](const std::string& reason) {
      throw_invalid("gguf_writer: tensor \"", detail::printable(name), "\" ", reason);
    };
    if (name.empty() || name.size() > detail::longest_gguf_name) refuse("must have a name of 1 to 65535 bytes");
    if (std::any_of(tensors_.begin(), tensors_.end(), [&](const entry& t) { return t.name == name; }))
      refuse("is added twice");
    if (shape.size() > detail::most_gguf_dimensions)
      refuse("has " + std::to_string(shape.size()) + " dimensions, at most 4");
    const ggml_type_traits* const traits = find_ggml_type(static_cast<std::uint32_t>(type));
    if (traits == nullptr) refuse("is of no known type");
    std::uint64_t need = 0;
    try {
      need = detail::gguf_size({name, shape, static_cast<std::uint32_t>(type), 0}, *traits, "");
    } catch (const file_error&) {
      refuse("of shape " + detail::shape_text(shape) + " cannot be of " + std::string(traits->name) + ": blocks of " +
             std::to_string(traits->inputs));
    }
    if (need != bytes.size())
      refuse("of shape " + detail::shape_text(shape) + " needs " + std::to_string(need) + " bytes, is given " +
             std::to_string(bytes.size()));
    tensors_.push_back({name, shape, static_cast<std::uint32_t>(type), bytes});
  }

  void save(const std::filesystem::path& path) const {
    atomic_file file(path);
    write_to([&file](std::span<const std::byte> bytes) { file.write(bytes); });
    file.commit();
  }

  /// The file that save would write.
  std::vector<std::byte> to_bytes() const {
    std::vector<std::byte> out;
    write_to([&out](std::span<const std::byte> bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); });
    return out;
  }

private:
  static constexpr std::string_view alignment_key = "general.alignment";

  struct entry {
    std::string name;
    std::vector<std::int64_t> shape;
    std::uint32_t type;
    std::span<const std::byte> bytes;
  };

  template <typename T>
  static constexpr gguf_type type_of() {
    if constexpr (std::same_as<T, bool>) return gguf_type::boolean;
    if constexpr (std::same_as<T, float>) return gguf_type::f32;
    if constexpr (std::same_as<T, double>) return gguf_type::f64;
    constexpr bool is_signed = std::is_signed_v<T>;
    if constexpr (sizeof(T) == 1) return is_signed ? gguf_type::i8 : gguf_type::u8;
    if constexpr (sizeof(T) == 2) return is_signed ? gguf_type::i16 : gguf_type::u16;
    if constexpr (sizeof(T) == 4) return is_signed ? gguf_type::i32 : gguf_type::u32;
    return is_signed ? gguf_type::i64 : gguf_type::u64;
  }

  template <typename T>
  static void append(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static std::string with_length(std::string_view text) {
    std::string out;
    append(out, static_cast<std::uint64_t>(text.size()));
    return out += text;
  }

  void add_key(const std::string& name, gguf_type type, const std::string& bytes) {
    if (name.empty() || name.size() > detail::longest_gguf_name)
      throw_invalid("gguf_writer: a key must have a name of 1 to 65535 bytes, not ", name.size());
    if (std::any_of(keys_.begin(), keys_.end(), [&](const auto& key) { return key.first == name; }))
      throw_invalid("gguf_writer: key \"", detail::printable(name), "\" is given twice");
    std::string rest;
    append(rest, static_cast<std::uint32_t>(type));
    keys_.emplace_back(name, rest + bytes);
  }

  std::uint64_t padding(std::uint64_t size) const { return (alignment_ - size % alignment_) % alignment_; }

  std::string header() const {
    std::string out = "GGUF";
    append(out, std::uint32_t{3});
    append(out, static_cast<std::uint64_t>(tensors_.size()));
    append(out, static_cast<std::uint64_t>(keys_.size()));
    for (const auto& [name, rest] : keys_) out += with_length(name) + rest;
    std::uint64_t offset = 0;
    for (const entry& tensor : tensors_) {
      out += with_length(tensor.name);
      append(out, static_cast<std::uint32_t>(tensor.shape.size()));
      for (std::size_t d = tensor.shape.size(); d-- > 0;) append(out, static_cast<std::uint64_t>(tensor.shape[d]));
      append(out, tensor.type);
      append(out, offset);
      offset += tensor.bytes.size() + padding(tensor.bytes.size());
    }
    return out;
  }

  template <typename Sink>
  void write_to(Sink sink) const {
    std::string text = header();
    text.append(padding(text.size()), '\0');
    sink(std::as_bytes(std::span<const char>(text)));
    const std::vector<std::byte> zeros(alignment_);
    for (const entry& tensor : tensors_) {
      sink(tensor.bytes);
      sink(std::span<const std::byte>(zeros).first(padding(tensor.bytes.size())));
    }
  }

  std::uint64_t alignment_ = 32;
  std::vector<std::pair<std::string, std::string>> keys_;  // type and value behind the name
  std::vector<entry> tensors_;
};

}  // namespace sluice::inline SLUICE_ISA
