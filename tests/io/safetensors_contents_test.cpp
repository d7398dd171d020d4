#include <sluice/io/safetensors_contents.hpp>

#include "file_cases.hpp"
#include "messages.hpp"
#include "support.hpp"

#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

using namespace sluice;

namespace {

/// The message that the bytes are refused with, or "" if they are accepted. They are parsed in an allocation of exactly
/// their size, so that AddressSanitizer sees a read beyond them. An exception of any other type fails the test.
std::string complaint_about_header(const std::string& text) {
  const std::vector<std::byte> bytes(reinterpret_cast<const std::byte*>(text.data()),
                                     reinterpret_cast<const std::byte*>(text.data()) + text.size());
  try {
    const safetensors_contents contents = parse_safetensors(bytes, "dir/model.safetensors");
    std::size_t total = 0;  // whatever is accepted lies inside the bytes and is as large as its shape says
    for (const tensor_info& tensor : contents.tensors) {
      std::size_t need = size_of(tensor.dtype);
      for (const std::int64_t extent : tensor.shape) need *= static_cast<std::size_t>(extent);
      if (tensor.dtype == data_type::other) need = tensor.bytes.size();
      REQUIRE(tensor.bytes.size() == need);
      REQUIRE((tensor.bytes.empty() ||
               (tensor.bytes.data() >= bytes.data() + 8 && tensor.bytes.data() + need <= bytes.data() + bytes.size())));
      total += need;
    }
    REQUIRE(total < bytes.size());
    return {};
  } catch (const file_error& error) {
    return error.what();
  }
}

}  // namespace

TEST_CASE("parse_safetensors: valid files are accepted", "[io]") {
  for (const file_cases::file_case& c : file_cases::valid_files()) {
    CAPTURE(c.name);
    CHECK(complaint_about_header(c.bytes) == "");
  }
}

TEST_CASE("parse_safetensors: each malformed file is refused with its file, tensor and numbers", "[io]") {
  for (const file_cases::file_case& c : file_cases::malformed_files()) {
    const std::string complaint = complaint_about_header(c.bytes);
    CAPTURE(c.name);
    REQUIRE(!c.complaint.empty());
    CHECK_THAT(complaint, Catch::Matchers::StartsWith("sluice: file \"dir/model.safetensors\": "));
    for (const std::string& part : c.complaint) CHECK_THAT(complaint, test::contains(part));
    CHECK(complaint.size() < 700);
  }
}

TEST_CASE("parse_safetensors: names, types, shapes, bytes and metadata arrive as written", "[io]") {
  const std::string text = file_cases::reference_style_file();
  const auto bytes = std::as_bytes(std::span<const char>(text));
  const safetensors_contents contents = parse_safetensors(bytes, "file");
  REQUIRE(contents.tensors.size() == 3);
  CHECK(contents.metadata == std::map<std::string, std::string>{{"system", "mixtral"},
                                                                {"config", R"({"E": 3, "T": 2, "k": 1})"},
                                                                {"notes", "weights are [out,in]"}});
  const tensor_info& x = contents.tensors[1];
  CHECK(x.name == "x");
  CHECK(x.dtype == data_type::f32);
  CHECK(x.shape == std::vector<std::int64_t>{2, 3});
  CHECK(x.elements() == 6);
  CHECK(x.bytes.data() == bytes.data() + bytes.size() - 28);
  CHECK(contents.by_name == std::vector<std::size_t>{2, 0, 1});  // expected.aux_loss, expected.indices, x
}

TEST_CASE("parse_safetensors: a file cut off after any byte is refused", "[io]") {
  for (const file_cases::file_case& c : file_cases::valid_files())
    for (std::size_t length = 0; length < c.bytes.size(); ++length) {
      CAPTURE(c.name, length);
      REQUIRE(complaint_about_header(c.bytes.substr(0, length)) != "");
    }
}

TEST_CASE("parse_safetensors: any byte of the header may hold any value without harm", "[io]") {
  int accepted = 0;
  int refused = 0;
  for (const file_cases::file_case& c : file_cases::valid_files()) {
    if (c.name != "valid_empty_tensors" && c.name != "valid_metadata") continue;
    std::uint64_t header = 0;
    std::memcpy(&header, c.bytes.data(), 8);
    std::string bytes = c.bytes;
    for (std::size_t i = 0; i < 8 + header; ++i) {
      for (int value = 0; value < 256; ++value) {
        bytes[i] = static_cast<char>(value);
        (complaint_about_header(bytes).empty() ? accepted : refused) += 1;
      }
      bytes[i] = c.bytes[i];
    }
  }
  CHECK(accepted > 1000);   // other names, other metadata
  CHECK(refused > 10'000);  // everything else
}

TEST_CASE("parse_safetensors: hostile text is escaped and cut in messages", "[io]") {
  const std::string name = R"(\u001b[31m)" + std::string(5000, 'x');
  const std::string complaint =
      complaint_about_header(file_cases::file_of("{" + file_cases::entry(name, "F32", "[2]", "[0,4]") + "}", 4));
  CHECK_THAT(complaint, test::contains("tensor \"\\x1B[31mxxx"));
  CHECK_THAT(complaint, test::contains("(5005 bytes)"));
  CHECK(complaint.size() < 500);
}

TEST_CASE("parse_safetensors: ten thousand tensors are sorted by name", "[io]") {
  const int count = 10'000;
  std::string header = "{";
  for (int i = 0; i < count; ++i)
    header += (i == 0 ? "" : ",") + file_cases::entry(std::to_string(i * 7919 % count), "U8", "[1]",
                                                      "[" + std::to_string(i) + "," + std::to_string(i + 1) + "]");
  const std::string text = file_cases::file_of(header + "}", static_cast<std::size_t>(count));
  const safetensors_contents contents = parse_safetensors(std::as_bytes(std::span<const char>(text)), "file");
  REQUIRE(contents.tensors.size() == static_cast<std::size_t>(count));
  REQUIRE(contents.by_name.size() == static_cast<std::size_t>(count));
  for (std::size_t i = 1; i < contents.by_name.size(); ++i)
    REQUIRE(contents.tensors[contents.by_name[i - 1]].name < contents.tensors[contents.by_name[i]].name);
}

TEST_CASE("checked_byte_count: products up to 63 bits, and nothing beyond", "[io]") {
  using detail::checked_byte_count;
  using shape = std::vector<std::int64_t>;
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  CHECK(checked_byte_count(shape{}, 4) == 4);
  CHECK(checked_byte_count(shape{2, 3}, 8) == 48);
  CHECK(checked_byte_count(shape{most}, 1) == static_cast<std::uint64_t>(most));
  CHECK(checked_byte_count(shape{std::int64_t{1} << 40, 0}, 4) == 0);
  CHECK(checked_byte_count(shape{most}, 2) == std::nullopt);
  CHECK(checked_byte_count(shape{std::int64_t{1} << 32, std::int64_t{1} << 32}, 1) == std::nullopt);
  CHECK(checked_byte_count(shape{0, most, 2}, 1) == std::nullopt);
  CHECK(checked_byte_count(shape{2, -1}, 1) == std::nullopt);
}
