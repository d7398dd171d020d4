/// Small GGUF files, valid and malformed, one for each thing that can be right or wrong with such a file. The tests check
/// what the reader says of each; tests/fuzz/make_corpus.cpp writes them as the fuzzer's seeds.
#pragma once

#include "file_cases.hpp"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace file_cases {

inline std::string u32(std::uint32_t value) { return little_endian(value).substr(0, 4); }
inline std::string text_of(const std::string& text) { return little_endian(text.size()) + text; }

/// Type number and bytes of a value.
inline std::string key(const std::string& name, std::uint32_t type, const std::string& value) {
  return text_of(name) + u32(type) + value;
}
inline std::string array_of(std::uint32_t type, std::uint64_t count, const std::string& elements) {
  return u32(type) + little_endian(count) + elements;
}
inline std::string tensor_of(const std::string& name, const std::vector<std::uint64_t>& extents, std::uint32_t type,
                             std::uint64_t offset) {
  std::string out = text_of(name) + u32(static_cast<std::uint32_t>(extents.size()));
  for (const std::uint64_t extent : extents) out += little_endian(extent);
  return out + u32(type) + little_endian(offset);
}

/// A file of these keys and tensors with data bytes 0, 1, 2, ... behind padding.
inline std::string gguf_of(const std::vector<std::string>& keys, const std::vector<std::string>& tensors,
                           std::size_t data_size = 0, std::size_t alignment = 32, std::uint32_t version = 3) {
  std::string out = "GGUF" + u32(version) + little_endian(tensors.size()) + little_endian(keys.size());
  for (const std::string& each : keys) out += each;
  for (const std::string& each : tensors) out += each;
  if (data_size > 0) out.append((alignment - out.size() % alignment) % alignment, '\0');
  for (std::size_t i = 0; i < data_size; ++i) out += static_cast<char>(i & 0x7F);
  return out;
}

/// Two rows of one block of every type of blocks: type, inputs and bytes of a block.
inline std::string gguf_of_every_block() {
  struct block {
    std::uint32_t type, inputs, bytes;
  };
  std::vector<std::string> tensors;
  std::uint64_t at = 0;
  for (const auto& [type, inputs, bytes] :
       std::vector<block>{{2, 32, 18},    {3, 32, 20},    {6, 32, 22},    {7, 32, 24},    {8, 32, 34},   {10, 256, 84},
                          {11, 256, 110}, {12, 256, 144}, {13, 256, 176}, {14, 256, 210}, {16, 256, 66}, {17, 256, 74},
                          {18, 256, 98},  {19, 256, 50},  {20, 32, 18},   {21, 256, 110}, {22, 256, 82}, {23, 256, 136},
                          {29, 256, 56},  {34, 256, 54},  {35, 256, 66},  {39, 32, 17},   {40, 64, 36}}) {
    tensors.push_back(tensor_of("t" + std::to_string(type), {inputs, 2}, type, at));
    at += (2 * bytes + 31) / 32 * 32;
  }
  return gguf_of({}, tensors, at);
}

inline std::vector<file_case> valid_gguf_files() {
  const std::string f32 = std::string("\0\0\x20\x41", 4);  // 10
  const std::string nested = array_of(9, 2, array_of(5, 1, u32(7)) + array_of(8, 2, text_of("a") + text_of("")));
  std::string deep = array_of(0, 1, "x");
  for (int i = 1; i < 8; ++i) deep = array_of(9, 1, deep);
  return {
      {"empty", gguf_of({}, {}), {}},
      {"version_2", gguf_of({key("a", 4, u32(1))}, {tensor_of("w", {2}, 0, 0)}, 8, 32, 2), {}},
      {"every_type",
       gguf_of({key("u8", 0, "\xFF"), key("i8", 1, "\xFF"), key("u16", 2, "ab"), key("i16", 3, "\xFF\xFF"),
                key("u32", 4, u32(1)), key("i32", 5, u32(~0U)), key("f32", 6, f32), key("bool", 7, "\x01"),
                key("text", 8, text_of("gr\xC3\xBC\xC3\x9F")), key("empty", 8, text_of("")),
                key("list", 9, array_of(4, 2, u32(1) + u32(2))), key("u64", 10, little_endian(~std::uint64_t{0})),
                key("i64", 11, little_endian(~std::uint64_t{0})), key("f64", 12, little_endian(0x4000000000000000U))},
               {}),
       {}},
      {"arrays",
       gguf_of({key("nested", 9, nested), key("none", 9, array_of(12, 0, "")), key("deep", 9, deep),
                key("flags", 9, array_of(7, 2, std::string("\0\x01", 2)))},
               {}),
       {}},
      {"tensors",
       gguf_of({},
               {tensor_of("a", {4}, 0, 64), tensor_of("b", {32, 2}, 8, 96), tensor_of("c", {}, 0, 0),
                tensor_of("d", {0, 7}, 1, 32), tensor_of("e", {3, 1, 1, 2}, 1, 32)},
               96 + 68),
       {}},
      {"every_block", gguf_of_every_block(), {}},
      {"alignment_of_8",
       gguf_of({key("general.alignment", 4, u32(8))}, {tensor_of("a", {1}, 0, 0), tensor_of("b", {2}, 0, 8)}, 16, 8),
       {}},
      {"alignment_of_64",
       gguf_of({key("general.alignment", 4, u32(64))}, {tensor_of("a", {1}, 0, 0), tensor_of("b", {2}, 0, 64)}, 72, 64),
       {}},
      {"padded_end", gguf_of({}, {tensor_of("a", {1}, 0, 0)}, 32), {}},
      {"another_type", gguf_of({}, {tensor_of("a", {5}, 77, 0), tensor_of("b", {1}, 0, 32)}, 36), {}},
      {"another_type_last", gguf_of({}, {tensor_of("a", {5}, 4, 0)}, 100), {}},
  };
}

inline std::vector<file_case> malformed_gguf_files() {
  const std::string w = tensor_of("w", {2}, 0, 0), quoted_w = "tensor \"w\"", quoted_k = "key \"k\"";
  const std::string header = "GGUF" + u32(3);
  const std::uint64_t most = ~std::uint64_t{0};
  std::string deep = array_of(0, 1, "x");
  for (int i = 1; i < 9; ++i) deep = array_of(9, 1, deep);
  const std::string large_extents = gguf_of({}, {tensor_of("w", {4294967296U, 4294967296U}, 0, 0)}, 0);
  return {
      // The beginning.
      {"no_bytes", "", {"the beginning needs 4 bytes at byte 0, the file has 0 more"}},
      {"other_magic", "GGML" + std::string(28, '\0'), {"does not begin with GGUF"}},
      {"safetensors", file_of("{}"), {"does not begin with GGUF"}},
      {"no_version", "GGUF\3", {"the version needs 4 bytes"}},
      {"version_1", "GGUF" + u32(1) + std::string(16, '\0'), {"version 1, only 2 and 3"}},
      {"version_4", "GGUF" + u32(4) + std::string(16, '\0'), {"version 4, only 2 and 3"}},
      {"big_endian", "GGUF" + std::string("\0\0\0\3", 4) + std::string(16, '\0'), {"big-endian"}},
      {"no_counts", header + little_endian(0), {"the number of keys needs 8 bytes"}},
      {"many_tensors", header + little_endian(most) + little_endian(0), {"18446744073709551615 tensors"}},
      {"many_keys", header + little_endian(0) + little_endian(most), {"18446744073709551615 keys do not fit the 0"}},
      {"counts_that_wrap", header + little_endian(most / 25 + 1) + little_endian(most / 14 + 1), {"do not fit"}},
      // Keys.
      {"key_cut_off", gguf_of({key("k", 4, "ab")}, {}), {"needs 4 bytes at byte 37, the file has 2 more"}},
      {"key_name_beyond",
       header + little_endian(0) + little_endian(1) + little_endian(100) + "abcdef",
       {"a key needs 100 bytes"}},
      {"key_name_wraps",
       header + little_endian(0) + little_endian(1) + little_endian(most) + "abcdef",
       {"a key has 18446744073709551615 bytes"}},
      {"key_without_name", gguf_of({key("", 4, u32(1))}, {}), {"a key has 0 bytes"}},
      {"key_of_64_kilobytes", gguf_of({key(std::string(65536, 'k'), 4, u32(1))}, {}), {"a key has 65536 bytes"}},
      {"key_twice", gguf_of({key("k", 4, u32(1)), key("k", 5, u32(1))}, {}), {quoted_k, "is given twice"}},
      {"value_of_no_type", gguf_of({key("k", 13, u32(1))}, {}), {quoted_k, "type 13, which no value is"}},
      {"boolean_2", gguf_of({key("k", 7, "\x02")}, {}), {quoted_k, "0 or 1, is 2"}},
      {"boolean_2_in_array", gguf_of({key("k", 9, array_of(7, 1, "\x02"))}, {}), {quoted_k, "0 or 1, is 2"}},
      {"text_beyond", gguf_of({key("k", 8, little_endian(9) + "12345678")}, {}), {"needs 9 bytes", "has 8 more"}},
      {"text_wraps", gguf_of({key("k", 8, little_endian(most) + "12345678")}, {}), {"needs 18446744073709551615"}},
      {"array_of_no_type", gguf_of({key("k", 9, array_of(13, 1, "x"))}, {}), {quoted_k, "type 13, which no value is"}},
      {"array_beyond",
       gguf_of({key("k", 9, array_of(4, 3, u32(1) + u32(2)))}, {}),
       {quoted_k, "3 elements do not fit"}},
      {"array_that_wraps",
       gguf_of({key("k", 9, array_of(10, std::uint64_t{1} << 61U, little_endian(1)))}, {}),
       {quoted_k, "2305843009213693952 elements do not fit"}},
      {"array_of_many_texts",
       gguf_of({key("k", 9, array_of(8, most, ""))}, {}),
       {quoted_k, "elements do not fit the 0"}},
      {"array_of_many_arrays",
       gguf_of({key("k", 9, array_of(9, most, ""))}, {}),
       {quoted_k, "elements do not fit the 0"}},
      {"text_in_array_beyond",
       gguf_of({key("k", 9, array_of(8, 2, text_of("a") + little_endian(5) + "b"))}, {}),
       {"needs 5 bytes", "has 1 more"}},
      {"arrays_9_deep", gguf_of({key("k", 9, deep)}, {}), {quoted_k, "nested more than 8 deep"}},
      // The alignment.
      {"alignment_0", gguf_of({key("general.alignment", 4, u32(0))}, {w}, 8), {"power of two from 8 on, is U32 0"}},
      {"alignment_4", gguf_of({key("general.alignment", 4, u32(4))}, {w}, 8), {"is U32 4"}},
      {"alignment_48", gguf_of({key("general.alignment", 4, u32(48))}, {w}, 8), {"is U32 48"}},
      {"alignment_of_64_bits",
       gguf_of({key("general.alignment", 10, little_endian(32))}, {w}, 8),
       {"must be a U32", "is U64 32"}},
      {"alignment_is_text", gguf_of({key("general.alignment", 8, text_of("32"))}, {w}, 8), {"is string"}},
      // Tensors.
      {"tensor_cut_off", gguf_of({}, {w.substr(0, w.size() - 1)}), {"a tensor needs 8 bytes", "has 7 more"}},
      {"tensor_without_name", gguf_of({}, {tensor_of("", {2}, 0, 0)}, 8), {"the name of a tensor has 0 bytes"}},
      {"tensor_twice", gguf_of({}, {w, tensor_of("w", {2}, 0, 32)}, 40), {quoted_w, "is listed twice"}},
      {"five_dimensions",
       gguf_of({}, {tensor_of("w", {1, 1, 1, 1, 1}, 0, 0)}, 4),
       {quoted_w, "5 dimensions, at most 4"}},
      {"many_dimensions",
       gguf_of({}, {text_of("w") + u32(~0U) + std::string(60, '\1')}),
       {quoted_w, "4294967295 dimensions"}},
      {"extent_of_64_bits", gguf_of({}, {tensor_of("w", {most}, 0, 0)}, 8), {quoted_w, "exceeds 63 bits"}},
      {"product_wraps_to_0",
       large_extents,
       {quoted_w, "[4294967296, 4294967296] of f32 counts more than fits 63 bits"}},
      {"elements_wrap",
       gguf_of({}, {tensor_of("w", {std::uint64_t{1} << 33U, std::uint64_t{1} << 30U}, 35, 0)}, 8),
       {quoted_w, "counts more than fits 63 bits"}},
      {"elements_of_another_type_wrap",
       gguf_of({}, {tensor_of("w", {std::uint64_t{1} << 40U, std::uint64_t{1} << 40U}, 77, 0)}, 8),
       {quoted_w, "counts more than fits 63 bits"}},
      {"overflow_beside_0",
       gguf_of({}, {tensor_of("w", {0, std::uint64_t{1} << 40U, std::uint64_t{1} << 40U}, 0, 0)}, 8),
       {quoted_w, "63 bits"}},
      {"row_of_half_a_block",
       gguf_of({}, {tensor_of("w", {48, 2}, 8, 0)}, 102),
       {quoted_w, "shape [2, 48] of q8_0: rows are no whole blocks of 32"}},
      {"between_alignments", gguf_of({}, {tensor_of("w", {2}, 0, 8)}, 16), {quoted_w, "offset 8 is no multiple"}},
      {"beyond_the_end",
       gguf_of({}, {tensor_of("w", {3}, 0, 0)}, 8),
       {quoted_w, "offset 0 and 12 bytes leave", "8 bytes"}},
      {"begins_beyond", gguf_of({}, {tensor_of("w", {2}, 0, 32)}, 8), {quoted_w, "leave the data section of 8 bytes"}},
      {"offset_that_wraps",
       gguf_of({}, {tensor_of("w", {8}, 0, most - 31)}, 8),
       {quoted_w, "offset 18446744073709551584"}},
      {"another_type_begins_beyond", gguf_of({}, {tensor_of("w", {8}, 77, 64)}, 8), {quoted_w, "leave"}},
      {"no_data", gguf_of({}, {w}), {quoted_w, "leave the data section of 0 bytes"}},
      {"data_cut_off", gguf_of({}, {w}, 7), {quoted_w, "data section of 7 bytes"}},
      {"overlap",
       gguf_of({}, {tensor_of("w", {16}, 0, 0), tensor_of("v", {2}, 0, 32)}, 64),
       {"tensor \"v\"", "offset 32 lies inside tensor \"w\" that ends at 64"}},
      {"shared_range", gguf_of({}, {w, tensor_of("v", {2}, 0, 0)}, 8), {"lies inside"}},
      {"hole",
       gguf_of({}, {w, tensor_of("v", {2}, 0, 64)}, 72),
       {"tensor \"v\"", "bytes from 8 on belong to no tensor"}},
      {"hole_in_front", gguf_of({}, {tensor_of("w", {2}, 0, 32)}, 40), {quoted_w, "bytes from 0 on"}},
      {"data_after", gguf_of({}, {w}, 40), {"the last 32 of 40 data bytes belong to no tensor"}},
      {"data_without_tensors", gguf_of({}, {}, 40), {"the last 40 of 40"}},
  };
}

}  // namespace file_cases
