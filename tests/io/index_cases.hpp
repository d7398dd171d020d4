/// Indices of checkpoints, valid and malformed, one for each thing that can be right or wrong with them: see
/// file_cases.hpp.
#pragma once

#include "file_cases.hpp"

#include <string>
#include <vector>

namespace file_cases {

/// An index of those entries of its weight_map.
inline std::string index_of(const std::string& entries) { return R"({"weight_map":{)" + entries + "}}"; }

inline std::vector<file_case> valid_indices() {
  return {
      {"valid_hugging_face",
       "{\n  \"metadata\": {\n    \"total_size\": 20\n  },\n  \"weight_map\": {\n"
       "    \"a\": \"model-00001-of-00002.safetensors\",\n    \"b\": \"model-00002-of-00002.safetensors\"\n  }\n}\n",
       {}},
      {"valid_nothing", index_of(""), {}},
      {"valid_no_metadata", index_of(R"("a":"x.safetensors")"), {}},
      {"valid_metadata_last", R"({"weight_map":{"a":"x.safetensors"},"metadata":{}})", {}},
      {"valid_scalars",
       R"({"metadata":{"t":true,"f":false,"n":null,"i":-3,"u":18446744073709551615,"x":1.50e3,"s":"text",)"
       R"("total_size":2.5e10},"weight_map":{}})",
       {}},
      {"valid_escaped", index_of(R"("\u0061\u00fc":"x\u002esafetensors","":"\u00fc y.safetensors")"), {}},
      {"valid_dots", index_of(R"("a":"...safetensors","b":"..x.safetensors","c":" .safetensors")"), {}},
      {"valid_endings",
       index_of(R"("a":"x.SAFETENSORS","b":".safetensors","c":"pytorch_model.bin","d":"blob","e":"x.safetensors.v2")"),
       {}},
      {"valid_other_keys",
       R"({"format":{"of":[1,{"weight_map":{"w":"x"}}]},"n":1,"list":["a"],"metadata":{"a":{"b":[NaN]},"c":[]},)"
       R"("weight_map":{"a":"x.safetensors"}})",
       {}},
      {"valid_python_numbers", R"({"metadata":{"a":NaN,"b":-Infinity},"x":[Infinity],"weight_map":{}})", {}},
      {"valid_byte_order_mark", "\xEF\xBB\xBF" + index_of(""), {}},
  };
}

inline std::vector<file_case> malformed_indices() {
  const auto shard = [](const std::string& name) { return index_of(R"("w":")" + name + '"'); };
  const std::string w = "tensor \"w\"";
  const std::string away = "is not a plain file name";
  return {
      // The text.
      {"no_bytes", "", {"not valid JSON"}},
      {"not_json", "{weight_map}", {"not valid JSON"}},
      {"cut_off", R"({"weight_map":{"w":"x.safetensors")", {"not valid JSON"}},
      {"text_after", index_of("") + "{}", {"not valid JSON"}},
      {"nul_hides_text", index_of("") + std::string(1, '\0') + "x", {"index has a NUL at its byte 17"}},
      {"not_utf8", index_of("\"\xC0\xAF\":\"x.safetensors\""), {"not valid JSON", "UTF-8"}},
      {"lone_surrogate", shard("\\udc00.safetensors"), {"not valid JSON"}},
      {"array", "[]", {"must be a JSON object, is an array"}},
      {"number", "7", {"must be a JSON object, is \"7\""}},
      // The keys.
      {"no_weight_map", R"({"metadata":{}})", {"has no weight_map"}},
      {"empty_object", "{}", {"has no weight_map"}},
      {"weight_map_twice", R"({"weight_map":{},"weight_map":{}})", {"key \"weight_map\" twice"}},
      {"metadata_twice", R"({"metadata":{},"metadata":{},"weight_map":{}})", {"key \"metadata\" twice"}},
      {"metadata_key_twice", R"({"metadata":{"a":1,"a":2},"weight_map":{}})", {"metadata key \"a\" is given twice"}},
      {"tensor_twice", index_of(R"("w":"x.safetensors","w":"y.safetensors")"), {w, "is listed twice"}},
      {"tensor_twice_escaped", index_of(R"("w":"x.safetensors","\u0077":"x.safetensors")"), {w, "is listed twice"}},
      // The types.
      {"weight_map_is_array", R"({"weight_map":["w"]})", {"weight_map must be an object, is an array"}},
      {"weight_map_is_null", R"({"weight_map":null})", {"weight_map must be an object, is \"null\""}},
      {"metadata_is_text", R"({"metadata":"pt","weight_map":{}})", {"metadata must be an object, is \"pt\""}},
      {"shard_is_number", index_of(R"("w":1)"), {w, "must be a string, is \"1\""}},
      {"shard_is_float", index_of(R"("w":1.5)"), {w, "is \"1.5\""}},
      {"shard_is_null", index_of(R"("w":null)"), {w, "is \"null\""}},
      {"shard_is_list", index_of(R"("w":["x.safetensors"])"), {w, "is an array"}},
      {"shard_is_object", index_of(R"("w":{"file":"x.safetensors"})"), {w, "is an object"}},
      {"deep_arrays", R"({"metadata":{"a":)" + repeat("[", 3000) + repeat("]", 3000) + "}}", {"has no weight_map"}},
      {"deep_objects", repeat(R"({"weight_map":)", 3000) + "1" + repeat("}", 3000), {"is an object"}},
      // The names.
      {"shard_above", shard("../x.safetensors"), {w, away}},
      {"shard_below", shard("sub/x.safetensors"), {w, away}},
      {"shard_here", shard("./x.safetensors"), {w, away}},
      {"shard_absolute", shard("/etc/x.safetensors"), {w, away}},
      {"shard_backslash", shard("..\\\\x.safetensors"), {w, away}},
      {"shard_drive", shard("C:x.safetensors"), {w, away}},
      {"shard_stream", shard("x:y.safetensors"), {w, away}},
      {"shard_nul", shard("x\\u0000.safetensors"), {w, away, "x\\x00.safetensors"}},
      {"shard_newline", shard("x\\n.safetensors"), {w, away}},
      {"shard_slash_escaped", shard("..\\u002fx.safetensors"), {w, away}},
      {"shard_is_folder", shard("."), {w, away}},
      {"shard_is_parent", shard(".."), {w, away}},
      {"shard_empty", shard(""), {w, away}},
      {"shard_long", shard(std::string(300, 'x') + ".safetensors"), {w, "longer than a file name", "312 bytes"}},
  };
}

}  // namespace file_cases
