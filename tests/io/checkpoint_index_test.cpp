#include <sluice/io/checkpoint_index.hpp>

#include "index_cases.hpp"
#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <map>
#include <string>
#include <vector>

using namespace sluice;

namespace {

/// The message that the index is refused with, or "". It is parsed in an allocation of exactly its size.
std::string complaint_about(const std::string& text) {
  const auto span = test::bytes_of(text);
  const std::vector<std::byte> bytes(span.begin(), span.end());
  try {
    for (const auto& [tensor, shard] : parse_checkpoint_index(bytes, "dir/index.json").weight_map) {
      REQUIRE(shard.find_first_of("/\\:") == std::string::npos);
      REQUIRE((!shard.empty() && shard != "." && shard != ".."));
    }
    return {};
  } catch (const file_error& error) {
    return error.what();
  }
}

checkpoint_index parse(const std::string& text) { return parse_checkpoint_index(test::bytes_of(text), "index"); }

}  // namespace

TEST_CASE("parse_checkpoint_index: valid indices are accepted", "[io]") {
  for (const file_cases::file_case& c : file_cases::valid_indices()) {
    CAPTURE(c.name);
    CHECK(complaint_about(c.bytes) == "");
  }
}

TEST_CASE("parse_checkpoint_index: each malformed index is refused with its file and reason", "[io]") {
  for (const file_cases::file_case& c : file_cases::malformed_indices()) {
    const std::string complaint = complaint_about(c.bytes);
    CAPTURE(c.name);
    REQUIRE(!c.complaint.empty());
    CHECK_THAT(complaint, Catch::Matchers::StartsWith("sluice: file \"dir/index.json\": "));
    for (const std::string& part : c.complaint) CHECK_THAT(complaint, test::contains(part));
    CHECK(complaint.size() < 700);
  }
}

TEST_CASE("parse_checkpoint_index: scalars of the metadata are kept as text, all but total_size", "[io]") {
  using map = std::map<std::string, std::string>;
  const checkpoint_index index =
      parse(R"({"metadata":{"t":true,"n":null,"i":-3,"u":18446744073709551615,"x":1.50e3,"s":"text","total_size":9},)"
            R"("weight_map":{"b\u00fc":"x.safetensors","a":"y.safetensors"}})");
  CHECK(index.metadata ==
        map{{"t", "true"}, {"n", "null"}, {"i", "-3"}, {"u", "18446744073709551615"}, {"x", "1.50e3"}, {"s", "text"}});
  CHECK(index.weight_map == map{{"a", "y.safetensors"}, {"b\xC3\xBC", "x.safetensors"}});
}

TEST_CASE("parse_checkpoint_index: an index cut off after any byte is refused", "[io]") {
  for (const file_cases::file_case& c : file_cases::valid_indices())
    for (std::size_t length = 0; length + 1 < c.bytes.size(); ++length) {  // the last byte may be a newline
      CAPTURE(c.name, length);
      REQUIRE(complaint_about(c.bytes.substr(0, length)) != "");
    }
}

TEST_CASE("parse_checkpoint_index: any byte may hold any value without harm", "[io]") {
  int accepted = 0;
  int refused = 0;
  for (const file_cases::file_case& c : file_cases::valid_indices()) {
    if (c.name != "valid_scalars" && c.name != "valid_escaped") continue;
    std::string bytes = c.bytes;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      for (int value = 0; value < 256; ++value) {
        bytes[i] = static_cast<char>(value);
        (complaint_about(bytes).empty() ? accepted : refused) += 1;
      }
      bytes[i] = c.bytes[i];
    }
  }
  CHECK(accepted > 1000);
  CHECK(refused > 10'000);
}

TEST_CASE("parse_checkpoint_index: more than 100 MB are refused unread", "[io]") {
  const std::string text(100'000'001, ' ');
  CHECK_THAT(complaint_about(text), test::contains("index of 100000001 bytes exceeds the limit of 100000000"));
}

TEST_CASE("parse_checkpoint_index: hostile text is escaped and cut in messages", "[io]") {
  const std::string complaint = complaint_about(file_cases::index_of(
      R"("\u001b[31m)" + std::string(5000, 'x') + R"(":"/\u001b)" + std::string(200, 'y') + ".safetensors\""));
  CHECK_THAT(complaint, test::contains("tensor \"\\x1B[31mxxx"));
  CHECK_THAT(complaint, test::contains("shard \"/\\x1Byyy"));
  CHECK(complaint.size() < 900);
}

TEST_CASE("names of shards: made and recognised", "[io]") {
  using namespace detail;
  CHECK(make_shard_name(1, 2, 3) == "model-00002-of-00003.safetensors");
  CHECK(make_shard_name(12, 2, 123456) == "model-12-00002-of-123456.safetensors");
  for (const char* own : {"model-00002-of-00003.safetensors", "model-12-00002-of-123456.safetensors"})
    CHECK(is_own_shard(own));
  for (const char* other : {"model.safetensors", "model-00002-of-00003.bin", "model-0002-of-0003.safetensors",
                            "model-x-00002-of-00003.safetensors", "model--00002-of-00003.safetensors",
                            "model2-00002-of-00003.safetensors", "model.fp16-00002-of-00003.safetensors",
                            "model-00002.safetensors", "00002-of-00003.safetensors", "-of-.safetensors", "", "model"})
    CHECK(!is_own_shard(other));
  CHECK(parse_shard_name("part-00002-of-00003.safetensors")->one_of_several);
  CHECK(parse_shard_name("part-00002-of-00003.safetensors")->stem == "part");
  CHECK(!parse_shard_name("part-00001-of-00001.safetensors")->one_of_several);
  CHECK(!parse_shard_name("00001-of-00002.safetensors"));
}
