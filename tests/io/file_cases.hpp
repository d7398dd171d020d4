/// Small safetensors files, valid and malformed, one for each thing that can be right or wrong with such a file. The
/// tests check what the reader says of each; tests/fuzz/make_corpus.cpp writes them as the fuzzer's seeds.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace file_cases {

struct file_case {
  std::string name;
  std::string bytes;
  std::vector<std::string> complaint;  // parts of the error message; a valid file has none

  bool valid() const { return complaint.empty(); }
};

inline std::string little_endian(std::uint64_t value) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
  return out;
}

/// A file of that header, as it is, and `data_size` data bytes 0, 1, 2, ...
inline std::string file_of(const std::string& header, std::size_t data_size = 0) {
  std::string out = little_endian(header.size()) + header;
  for (std::size_t i = 0; i < data_size; ++i) out += static_cast<char>(i & 0x7F);
  return out;
}

/// One tensor's entry: "w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}
inline std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
  return '"' + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + '}';
}

inline std::string repeat(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

/// A file as the reference vectors are: escaped JSON inside the metadata, 64-bit tensors first, padded header.
inline std::string reference_style_file() {
  std::string header =
      R"({"__metadata__":{"system":"mixtral","config":"{\"E\": 3, \"T\": 2, \"k\": 1}","notes":"weights are [out,in]"},)" +
      entry("expected.indices", "I64", "[2,1]", "[0,16]") + ',' + entry("x", "F32", "[2,3]", "[16,40]") + ',' +
      entry("expected.aux_loss", "F32", "[1]", "[40,44]") + '}';
  header.append((8 - header.size() % 8) % 8, ' ');
  std::string data = little_endian(2) + little_endian(0);  // 2, 0
  data += std::string(
      "\0\0\x80\x3f"
      "\0\0\0\xc0"
      "\0\0\0\x3f",
      12);  // 1, -2, 0.5
  data += std::string(
      "\0\0\0\0"
      "\0\0\x40\x40"
      "\0\0\x80\xbf",
      12);                                 // 0, 3, -1
  data += std::string("\0\0\xa0\x3f", 4);  // 1.25
  return little_endian(header.size()) + header + data;
}

inline std::vector<file_case> valid_files() {
  std::string every_type = "{";
  int begin = 0;
  for (const auto& [type, size] : std::vector<std::pair<std::string, int>>{{"F64", 8},
                                                                           {"I64", 8},
                                                                           {"U64", 8},
                                                                           {"F32", 4},
                                                                           {"I32", 4},
                                                                           {"U32", 4},
                                                                           {"F16", 2},
                                                                           {"BF16", 2},
                                                                           {"I16", 2},
                                                                           {"U16", 2},
                                                                           {"BOOL", 1},
                                                                           {"U8", 1},
                                                                           {"I8", 1},
                                                                           {"F8_E5M2", 1},
                                                                           {"F8_E4M3", 1}}) {
    const int end = begin + 2 * size;
    every_type += entry(type, type, "[2]", "[" + std::to_string(begin) + "," + std::to_string(end) + "]") +
                  (type == "F8_E4M3" ? "}" : ",");
    begin = end;
  }
  const std::string w = entry("w", "F32", "[2]", "[0,8]");
  return {
      {"valid_nothing", file_of("{}"), {}},
      {"valid_matrix", file_of("{" + entry("w", "F32", "[2,3]", "[0,24]") + "}", 24), {}},
      {"valid_every_type", file_of(every_type, static_cast<std::size_t>(begin)), {}},
      {"valid_scalar", file_of("{" + entry("loss", "F64", "[]", "[0,8]") + "}", 8), {}},
      {"valid_empty_tensors",
       file_of(
           "{" + entry("none", "F32", "[0,5]", "[0,0]") + "," + w + "," + entry("end", "I64", "[3,0]", "[8,8]") + "}",
           8),
       {}},
      {"valid_metadata", file_of(R"({"__metadata__":{"a":"b","":"","quote":"\" \\ \n \u00fc"},)" + w + "}", 8), {}},
      {"valid_odd_header_length", file_of("{" + w + "} ", 8), {}},
      {"valid_trailing_spaces", file_of("{" + w + "}" + std::string(40, ' '), 8), {}},
      {"valid_listed_out_of_order", file_of("{" + entry("late", "U8", "[1]", "[8,9]") + "," + w + "}", 9), {}},
      {"valid_unaligned",
       file_of("{" + entry("b", "U8", "[1]", "[0,1]") + "," + entry("w", "F32", "[2]", "[1,9]") + "," +
                   entry("i", "I64", "[1]", "[9,17]") + "}",
               17),
       {}},
      {"valid_types_to_come",
       file_of("{" + entry("c", "C64", "[2]", "[0,16]") + "," + entry("f", "f4", "[3]", "[16,18]") + "}", 18),
       {}},
      {"valid_escaped_name", file_of(R"({"\u0077":{"shape":[2],"data_offsets":[0,8],"dtype":"F\u00332"}})", 8), {}},
      {"valid_reference_style", reference_style_file(), {}},
  };
}

inline std::vector<file_case> malformed_files() {
  const std::string w = entry("w", "F32", "[2]", "[0,8]");
  const auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets,
                         std::size_t data) { return file_of("{" + entry("w", dtype, shape, offsets) + "}", data); };
  const std::string quoted_w = "tensor \"w\"";
  return {
      // The length in front.
      {"no_bytes", "", {"has 0 bytes"}},
      {"seven_bytes", "\2\0\0\0\0\0\0", {"fewer than the 8"}},
      {"length_of_nothing", file_of(""), {"does not begin with {"}},
      {"length_beyond_file", little_endian(3) + "{}", {"header length 3 exceeds the 2 bytes"}},
      {"length_of_4_gb", little_endian(0xFFFFFFFF) + "{}", {"header length 4294967295", "100000000"}},
      {"length_below_limit", little_endian(100'000'000) + "{}", {"header length 100000000 exceeds the 2 bytes"}},
      {"length_of_64_bits", little_endian(~std::uint64_t{0}) + "{}", {"18446744073709551615"}},
      {"length_wraps", little_endian(~std::uint64_t{0} - 7) + "{}", {"18446744073709551608"}},
      // The text.
      {"not_json", file_of("{weights}"), {"not valid JSON"}},
      {"array", file_of("[]"), {"does not begin with {"}},
      {"leading_space", file_of(" {}"), {"does not begin with {"}},
      {"byte_order_mark", file_of("\xEF\xBB\xBF{}"), {"does not begin with {"}},
      {"cut_off", file_of("{" + w), {"not valid JSON"}},
      {"text_after", file_of("{" + w + "}{}", 8), {"not valid JSON"}},
      {"comment", file_of("{/**/}"), {"not valid JSON"}},
      {"trailing_comma", file_of("{" + w + ",}", 8), {"not valid JSON"}},
      {"nul_hides_text", file_of("{" + w + "}" + std::string(1, '\0') + "," + w, 8), {"NUL", "at its byte 54"}},
      {"not_utf8", file_of("{" + entry("\xC0\xAF", "F32", "[2]", "[0,8]") + "}", 8), {"not valid JSON", "UTF-8"}},
      {"lone_surrogate", file_of("{" + entry("\\ud800", "F32", "[2]", "[0,8]") + "}", 8), {"not valid JSON"}},
      // Nesting.
      {"deep_arrays",
       file_of(R"({"w":{"shape":)" + repeat("[", 2000) + repeat("]", 2000) + "}}"),
       {quoted_w, "shape must hold non-negative integers, has an array"}},
      {"deep_objects", file_of(repeat(R"({"w":)", 2000) + "1" + repeat("}", 2000)), {quoted_w, "unknown field \"w\""}},
      {"deep_offsets",
       file_of(R"({"w":{"data_offsets":[0,)" + repeat(R"({"a":)", 1000) + "1" + repeat("}", 1000) + "]}}"),
       {quoted_w, "data_offsets must hold non-negative integers, has an object"}},
      {"deep_metadata",
       file_of(R"({"__metadata__":)" + repeat(R"({"a":)", 1000) + "1" + repeat("}", 1001)),
       {"metadata \"a\"", "an object"}},
      // Duplicates.
      {"tensor_twice", file_of("{" + w + "," + w + "}", 8), {quoted_w, "twice"}},
      {"tensor_twice_escaped",
       file_of("{" + w + "," + entry("\\u0077", "F32", "[2]", "[8,16]") + "}", 16),
       {quoted_w, "twice"}},
      {"dtype_twice",
       file_of(R"({"w":{"dtype":"U8","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8),
       {quoted_w, "\"dtype\" is given twice"}},
      {"shape_twice",
       file_of(R"({"w":{"shape":[],"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8),
       {quoted_w, "\"shape\" is given twice"}},
      {"offsets_twice",
       file_of(R"({"w":{"data_offsets":[0,4],"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8),
       {quoted_w, "\"data_offsets\" is given twice"}},
      {"metadata_twice",
       file_of(R"({"__metadata__":{},)" + w + R"(,"__metadata__":{}})", 8),
       {"__metadata__ is given twice"}},
      {"metadata_key_twice", file_of(R"({"__metadata__":{"a":"1","a":"2"}})"), {"metadata key \"a\" is given twice"}},
      // Fields.
      {"many_elements_of_another_type", tensor("F4", "[9223372036854775807,2]", "[0,8]", 8), {quoted_w, "63 bits"}},
      {"another_type_beyond_the_end", tensor("F4", "[2]", "[0,9]", 8), {quoted_w, "leave the data section"}},
      {"number_as_dtype",
       file_of(R"({"w":{"dtype":7,"shape":[2],"data_offsets":[0,8]}})", 8),
       {quoted_w, "dtype must be a string, is the number 7"}},
      {"no_dtype", file_of(R"({"w":{"shape":[2],"data_offsets":[0,8]}})", 8), {quoted_w, "has no dtype"}},
      {"no_shape", file_of(R"({"w":{"dtype":"F32","data_offsets":[0,8]}})", 8), {quoted_w, "has no shape"}},
      {"no_offsets", file_of(R"({"w":{"dtype":"F32","shape":[2]}})", 8), {quoted_w, "has no data_offsets"}},
      {"unknown_field",
       file_of(R"({"w":{"dtype":"F32","shape":[2],"strides":[1],"data_offsets":[0,8]}})", 8),
       {quoted_w, "unknown field \"strides\""}},
      {"tensor_is_null", file_of(R"({"w":null})"), {quoted_w, "null"}},
      {"tensor_is_array", file_of(R"({"w":[0,8]})", 8), {quoted_w, "an array"}},
      {"metadata_is_null", file_of(R"({"__metadata__":null})"), {"__metadata__ must be an object, is null"}},
      {"metadata_is_text", file_of(R"({"__metadata__":"pt"})"), {"__metadata__ must be an object"}},
      {"metadata_number", file_of(R"({"__metadata__":{"steps":400}})"), {"metadata \"steps\"", "the number 400"}},
      {"metadata_true", file_of(R"({"__metadata__":{"a":true}})"), {"metadata \"a\"", "a boolean"}},
      {"metadata_array", file_of(R"({"__metadata__":{"a":["b"]}})"), {"metadata \"a\"", "an array"}},
      // Numbers.
      {"negative_extent", tensor("F32", "[-2]", "[0,8]", 8), {quoted_w, "the negative number -2"}},
      {"minus_zero", tensor("F32", "[-0]", "[0,0]", 0), {quoted_w, "negative"}},
      {"fraction", tensor("F32", "[2.0]", "[0,8]", 8), {quoted_w, "the number 2.0"}},
      {"exponent", tensor("F32", "[2e0]", "[0,8]", 8), {quoted_w, "the number 2e0"}},
      {"extent_of_64_bits", tensor("F32", "[9223372036854775808]", "[0,8]", 8), {quoted_w, "9223372036854775808"}},
      {"extent_beyond_64_bits",
       tensor("F32", "[18446744073709551618]", "[0,8]", 8),
       {quoted_w, "18446744073709551618"}},
      {"extent_is_text", tensor("F32", R"(["2"])", "[0,8]", 8), {quoted_w, "the string \"2\""}},
      {"negative_offset", tensor("F32", "[2]", "[-8,0]", 8), {quoted_w, "the negative number -8"}},
      {"offset_beyond_64_bits",
       tensor("F32", "[2]", "[0,18446744073709551624]", 8),
       {quoted_w, "data_offsets must hold"}},
      {"too_many_dimensions", tensor("U8", "[1" + repeat(",1", 64) + "]", "[0,1]", 1), {quoted_w, "64 dimensions"}},
      // Shapes against ranges.
      {"product_wraps_to_0",
       tensor("F32", "[4294967296,4294967296]", "[0,0]", 0),
       {quoted_w, "[4294967296, 4294967296] of F32", "63 bits"}},
      {"size_wraps_to_0", tensor("F32", "[4611686018427387904]", "[0,0]", 0), {quoted_w, "63 bits"}},
      {"size_wraps_to_4", tensor("F32", "[4611686018427387905]", "[0,4]", 4), {quoted_w, "63 bits"}},
      {"overflow_beside_0", tensor("F32", "[4294967296,4294967296,0]", "[0,0]", 0), {quoted_w, "63 bits"}},
      {"shape_too_large", tensor("F32", "[3]", "[0,8]", 8), {quoted_w, "[3] of F32 needs 12 bytes", "hold 8"}},
      {"shape_too_small", tensor("F64", "[1]", "[0,16]", 16), {quoted_w, "needs 8 bytes", "hold 16"}},
      {"one_offset", tensor("F32", "[2]", "[8]", 8), {quoted_w, "two numbers, has 1"}},
      {"no_offset", tensor("F32", "[2]", "[]", 8), {quoted_w, "two numbers, has 0"}},
      {"three_offsets", tensor("F32", "[2]", "[0,8,8]", 8), {quoted_w, "more than two"}},
      {"reversed_range", tensor("F32", "[2]", "[8,0]", 8), {quoted_w, "[8, 0] end before they begin"}},
      {"reversed_range_wraps", tensor("F32", "[2]", "[18446744073709551608,0]", 8), {quoted_w, "before they begin"}},
      {"range_beyond_file", tensor("F32", "[3]", "[0,12]", 8), {quoted_w, "[0, 12] leave the data section of 8 bytes"}},
      {"range_of_64_bits", tensor("U8", "[8]", "[18446744073709551607,18446744073709551615]", 8), {quoted_w, "leave"}},
      // Tiling.
      {"overlap",
       file_of("{" + w + "," + entry("v", "F32", "[2]", "[4,12]") + "}", 12),
       {"tensor \"v\"", "begins at byte 4, inside tensor \"w\""}},
      {"shared_range", file_of("{" + w + "," + entry("v", "F32", "[2]", "[0,8]") + "}", 8), {"inside tensor"}},
      {"empty_inside", file_of("{" + w + "," + entry("v", "F32", "[0]", "[4,4]") + "}", 8), {"tensor \"v\"", "inside"}},
      {"hole",
       file_of("{" + w + "," + entry("v", "F32", "[2]", "[12,20]") + "}", 20),
       {"tensor \"v\"", "bytes from 8 on belong to no tensor"}},
      {"hole_in_front", tensor("F32", "[2]", "[4,12]", 12), {quoted_w, "bytes from 0 on"}},
      {"data_after", tensor("F32", "[2]", "[0,8]", 12), {"last 4 of 12 data bytes"}},
      {"data_without_tensors", file_of("{}", 3), {"last 3 of 3 data bytes"}},
      {"data_cut_off", tensor("F32", "[2]", "[0,8]", 7), {quoted_w, "data section of 7 bytes"}},
  };
}

}  // namespace file_cases
