#include <sluice/io/gguf_contents.hpp>

#include "gguf_cases.hpp"
#include "messages.hpp"
#include "support.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

using namespace sluice;

namespace {

/// Goes through everything in a value, as a caller may.
std::size_t gguf_values_in(const gguf_value& value) {
  std::size_t count = 1;
  value.for_each([&](const gguf_value& element) {
    count += value.type() == gguf_type::array ? gguf_values_in(element) : 0;
    if (const auto text = element.text()) count += text->size();
  });
  return count;
}

/// The message that the bytes are refused with, or "" if they are accepted. They are parsed in an allocation of exactly
/// their size, so that AddressSanitizer sees a read beyond them. An exception of any other type fails the test.
std::string complaint_about_gguf(const std::string& text) {
  const std::vector<std::byte> bytes(reinterpret_cast<const std::byte*>(text.data()),
                                     reinterpret_cast<const std::byte*>(text.data()) + text.size());
  try {
    const gguf_contents contents = parse_gguf(bytes, "dir/model.gguf");
    for (const auto& [key, value] : contents.metadata) REQUIRE(gguf_values_in(value) < bytes.size());
    std::size_t total = 0;
    for (const tensor_info& tensor : contents.tensors) {
      REQUIRE((tensor.bytes.empty() || (tensor.bytes.data() >= bytes.data() + 24 &&
                                        tensor.bytes.data() + tensor.bytes.size() <= bytes.data() + bytes.size())));
      if (tensor.dtype != data_type::other) REQUIRE(tensor.bytes.size() == tensor.elements() * size_of(tensor.dtype));
      total += tensor.bytes.size();
    }
    REQUIRE(total < bytes.size());
    return {};
  } catch (const file_error& error) {
    return error.what();
  }
}

std::vector<std::byte> gguf_bytes(const std::string& text) {
  const auto* const begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

std::string valid_gguf(const std::string& name) {
  for (const file_cases::file_case& c : file_cases::valid_gguf_files())
    if (c.name == name) return c.bytes;
  return {};
}

}  // namespace

TEST_CASE("parse_gguf: valid files are accepted", "[io]") {
  for (const file_cases::file_case& c : file_cases::valid_gguf_files()) {
    CAPTURE(c.name);
    CHECK(complaint_about_gguf(c.bytes) == "");
  }
}

TEST_CASE("parse_gguf: each malformed file is refused with its file, tensor or key and numbers", "[io]") {
  for (const file_cases::file_case& c : file_cases::malformed_gguf_files()) {
    const std::string complaint = complaint_about_gguf(c.bytes);
    CAPTURE(c.name);
    REQUIRE(!c.complaint.empty());
    CHECK_THAT(complaint, Catch::Matchers::StartsWith("sluice: file \"dir/model.gguf\": "));
    for (const std::string& part : c.complaint) CHECK_THAT(complaint, test::contains(part));
    CHECK(complaint.size() < 700);
  }
}

TEST_CASE("parse_gguf: a file that ends early is refused, wherever it ends", "[io]") {
  for (const char* const name : {"every_type", "arrays", "alignment_of_64"}) {
    const std::string whole = valid_gguf(name);
    for (std::size_t size = 0; size < whole.size(); ++size) {
      CAPTURE(name, size);
      CHECK(!complaint_about_gguf(whole.substr(0, size)).empty());
    }
  }
}

TEST_CASE("parse_gguf: no single changed byte leads out of the file", "[io]") {
  int accepted = 0, refused = 0;
  for (const char* const name : {"arrays", "tensors", "alignment_of_64"}) {
    std::string bytes = valid_gguf(name);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const char before = bytes[i];
      for (const int value : {0, 1, 2, 4, 7, 8, 9, 12, 13, 31, 32, 64, 127, 128, 254, 255}) {
        bytes[i] = static_cast<char>(value);
        (complaint_about_gguf(bytes).empty() ? accepted : refused) += 1;
      }
      bytes[i] = before;
    }
  }
  CHECK(accepted > 500);  // other names and values
  CHECK(refused > 500);
}

TEST_CASE("gguf_value: every type says what it is, and nothing else", "[io]") {
  const std::vector<std::byte> bytes = gguf_bytes(valid_gguf("every_type"));
  const gguf_contents contents = parse_gguf(bytes, "file");
  const auto value = [&](const char* name) { return contents.metadata.at(name); };
  CHECK(value("u8").integer() == 255);
  CHECK(value("i8").integer() == -1);
  CHECK(value("u16").integer() == 0x6261);
  CHECK(value("i16").integer() == -1);
  CHECK(value("u32").integer() == 1);
  CHECK(value("i32").integer() == -1);
  CHECK(value("u64").integer() == std::nullopt);  // beyond 63 bits
  CHECK(value("i64").integer() == -1);
  CHECK(value("f32").number() == 10.0);
  CHECK(value("f64").number() == 2.0);
  CHECK(value("bool").boolean() == true);
  CHECK(value("text").text() == "gr\xC3\xBC\xC3\x9F");
  CHECK(value("empty").text() == "");
  for (const char* const name : {"f32", "bool", "text", "list"}) CHECK(value(name).integer() == std::nullopt);
  for (const char* const name : {"u32", "bool", "text", "list"}) CHECK(value(name).number() == std::nullopt);
  for (const char* const name : {"u8", "f32", "text"}) CHECK(value(name).boolean() == std::nullopt);
  for (const char* const name : {"u8", "f32", "list"}) CHECK(value(name).text() == std::nullopt);
  std::vector<std::int64_t> list;
  value("list").for_each([&](const gguf_value& element) { list.push_back(element.integer().value()); });
  CHECK(list == std::vector<std::int64_t>{1, 2});
  CHECK(value("list").type_text() == "array of U32");
}

TEST_CASE("gguf_value: arrays inside arrays are gone through in order", "[io]") {
  const std::vector<std::byte> bytes = gguf_bytes(valid_gguf("arrays"));
  const gguf_contents contents = parse_gguf(bytes, "file");
  std::string seen;
  contents.metadata.at("nested").for_each([&](const gguf_value& inner) {
    seen += inner.type_text() + ':';
    inner.for_each([&](const gguf_value& element) {
      seen += element.text() ? '"' + std::string(*element.text()) + '"' : std::to_string(element.integer().value());
    });
    seen += ';';
  });
  CHECK(seen == "array of I32:7;array of string:\"a\"\"\";");
  CHECK(contents.metadata.at("none").elements() == 0);
}

TEST_CASE("parse_gguf: shapes are slowest first, and offsets count from the data section", "[io]") {
  const std::vector<std::byte> bytes = gguf_bytes(valid_gguf("tensors"));
  const gguf_contents contents = parse_gguf(bytes, "file");
  using shape = std::vector<std::int64_t>;
  CHECK(contents.tensors[1].shape == shape{2, 32});
  CHECK(contents.tensors[1].type_name() == "q8_0");
  CHECK(contents.tensors[1].bytes.size() == 68);
  CHECK(contents.tensors[2].shape.empty());
  CHECK(contents.tensors[4].shape == shape{2, 1, 1, 3});
  CHECK(contents.data_start % 32 == 0);
  CHECK(contents.tensors[0].bytes.data() == bytes.data() + contents.data_start + 64);
}

TEST_CASE("parse_gguf: a tensor of an unknown type has the bytes up to the next one", "[io]") {
  const std::vector<std::byte> bytes = gguf_bytes(valid_gguf("another_type"));
  const gguf_contents contents = parse_gguf(bytes, "file");
  CHECK(contents.tensors[0].dtype == data_type::other);
  CHECK(contents.tensors[0].type_name() == "type 77");
  CHECK(contents.tensors[0].bytes.size() == 32);
}
