#include <sluice/io/gguf.hpp>

#include "gguf_cases.hpp"
#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using namespace sluice;
using test::contains;

namespace {

std::string gguf_text(const gguf_writer& file) {
  const std::vector<std::byte> bytes = file.to_bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

TEST_CASE("gguf_writer: what is written is read as it was, byte for byte where a file is copied", "[io]") {
  const std::vector<float> numbers{1, 2, 3, 4, 5, 6};
  const std::vector<std::byte> blocks(68, std::byte{1});
  for (const std::uint32_t alignment : {0U, 8U, 64U}) {
    gguf_writer file;
    file.key("u8", std::uint8_t{255});
    file.key("i16", std::int16_t{-2});
    file.key("u64", ~std::uint64_t{0});
    file.key("flag", true);
    file.key("f", 1.5F);
    file.key("d", -2.5);
    file.key("text", "gr\xC3\xBC\xC3\x9F");
    if (alignment > 0) file.key("general.alignment", alignment);
    file.add("w", {2, 3}, ggml_type::f32, std::as_bytes(std::span(numbers)));
    file.add("q", {2, 32}, ggml_type::q8_0, blocks);
    file.add("none", {0, 4}, ggml_type::f16, {});
    const std::vector<std::byte> bytes = file.to_bytes();
    const gguf_reader read = gguf_reader::from_bytes(bytes, "file");
    CHECK(read.contents().alignment == (alignment == 0 ? 32 : alignment));
    CHECK(read.find_key("u8")->integer() == 255);
    CHECK(read.find_key("i16")->integer() == -2);
    CHECK(read.find_key("flag")->boolean() == true);
    CHECK(read.find_key("f")->number() == 1.5);
    CHECK(read.find_key("d")->number() == -2.5);
    CHECK(read.find_key("text")->text() == "gr\xC3\xBC\xC3\x9F");
    CHECK(read.read_vector("w") == numbers);
    CHECK(read.at("w").shape == std::vector<std::int64_t>{2, 3});
    CHECK(read.at("q").type_name() == "q8_0");
    CHECK(std::ranges::equal(read.at("q").bytes, blocks));
    CHECK(read.at("none").bytes.empty());
  }
  // Keys of any type are copied as they are, arrays in arrays too.
  for (const file_cases::file_case& c : file_cases::valid_gguf_files()) {
    if (c.name != "every_type" && c.name != "arrays") continue;
    const gguf_reader read = gguf_reader::from_bytes(test::bytes_of(c.bytes), "file");
    gguf_writer copy;
    for (const auto& [key, value] : read.contents().metadata) copy.key(key, value);
    const std::string text = gguf_text(copy);
    const gguf_reader again = gguf_reader::from_bytes(test::bytes_of(text), "copy");
    REQUIRE(again.contents().metadata.size() == read.contents().metadata.size());
    for (const auto& [key, value] : read.contents().metadata) {
      CHECK(again.find_key(key)->type() == value.type());
      CHECK(std::ranges::equal(again.find_key(key)->bytes(), value.bytes()));
    }
  }
}

TEST_CASE("gguf_writer: wrong arguments are refused and change nothing", "[io]") {
  gguf_writer file;
  const std::vector<std::byte> bytes(68);
  file.key("k", 1.0F);
  file.add("w", {2, 32}, ggml_type::q8_0, bytes);
  const std::string before = gguf_text(file);
  CHECK_THROWS_WITH(file.key("k", true), contains("key \"k\" is given twice"));
  CHECK_THROWS_WITH(file.key("", 1.0F), contains("name of 1 to 65535 bytes, not 0"));
  CHECK_THROWS_WITH(file.key("general.alignment", std::uint32_t{48}), contains("a power of two from 8 on, not 48"));
  CHECK_THROWS_WITH(file.key("general.alignment", std::uint64_t{64}), contains("must be a U32"));
  CHECK_THROWS_WITH(file.key("general.alignment", "32"), contains("must be a U32"));
  CHECK_THROWS_WITH(file.add("w", {2, 32}, ggml_type::q8_0, bytes), contains("\"w\" is added twice"));
  CHECK_THROWS_WITH(file.add("v", {2, 48}, ggml_type::q8_0, bytes),
                    contains("[2, 48] cannot be of q8_0: blocks of 32"));
  CHECK_THROWS_WITH(file.add("v", {2, 64}, ggml_type::q8_0, bytes), contains("needs 136 bytes, is given 68"));
  CHECK_THROWS_WITH(file.add("v", {1, 1, 1, 1, 1}, ggml_type::f32, bytes), contains("5 dimensions, at most 4"));
  CHECK_THROWS_WITH(file.add("v", {-1}, ggml_type::f32, bytes), contains("cannot be of f32"));
  CHECK_THROWS_WITH(file.add("v", {1}, static_cast<ggml_type>(77), bytes), contains("is of no known type"));
  CHECK(gguf_text(file) == before);
}

TEST_CASE("gguf_writer: a file is replaced as a whole", "[io]") {
  const test::temporary_folder folder;
  const auto path = folder / "m.gguf";
  test::write_bytes(path, "old");
  gguf_writer file;
  const std::vector<float> numbers{1, 2};
  file.add("w", {2}, ggml_type::f32, std::as_bytes(std::span(numbers)));
  file.save(path);
  CHECK(gguf_reader(path).read_vector("w") == numbers);
  CHECK(folder.file_count() == 1);
  CHECK_THROWS_AS(file.save(folder / "no such folder" / "m.gguf"), file_error);
}
