#include <sluice/io/safetensors_writer.hpp>

#include <sluice/io/safetensors_reader.hpp>

#include "child_process.hpp"
#include "file_cases.hpp"
#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using namespace sluice;

namespace {

safetensors_reader open(const std::vector<std::byte>& bytes) { return safetensors_reader::from_bytes(bytes, "memory"); }

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

template <typename Range>
concept Addable = requires(safetensors_writer w, Range&& range) {
  w.add("w", {1}, std::forward<Range>(range));
};

}  // namespace

TEST_CASE("safetensors_writer: the bytes are those that the format asks for", "[io]") {
  const std::vector<float> w{1, -2};
  safetensors_writer file;
  file.metadata("k", "v");
  file.add("w", {2, 1}, w);
  const std::string header = R"({"__metadata__":{"k":"v"},"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}})";
  REQUIRE(header.size() == 81);
  const std::string data("\0\0\x80\x3f\0\0\0\xc0", 8);
  CHECK(text_of(file.to_bytes()) == file_cases::little_endian(88) + header + std::string(7, ' ') + data);
  CHECK(text_of(safetensors_writer().to_bytes()) == file_cases::little_endian(8) + "{}      ");
}

TEMPLATE_TEST_CASE("safetensors_writer: values survive a round trip", "[io]", float, double, std::int8_t, std::uint8_t,
                   std::int16_t, std::uint16_t, std::int32_t, std::uint32_t, std::int64_t, std::uint64_t) {
  using limits = std::numeric_limits<TestType>;
  const std::vector<TestType> list{TestType(0),      TestType(1),   limits::max(),
                                   limits::lowest(), limits::min(), TestType(42)};
  safetensors_writer file;
  file.add("w", {3, 2}, list);
  const std::vector<std::byte> bytes = file.to_bytes();
  CHECK(open(bytes).at("w").shape == std::vector<std::int64_t>{3, 2});
  CHECK(open(bytes).at("w").dtype == data_type_of<TestType>);
  CHECK(open(bytes).read_vector<TestType>("w") == list);
}

TEST_CASE("safetensors_writer: bytes of every data_type survive a round trip, aligned to their element", "[io]") {
  std::vector<std::byte> raw(24);
  for (std::size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<std::byte>(37 * i + 1);
  constexpr auto types = static_cast<std::size_t>(data_type::other);
  safetensors_writer file;
  for (std::size_t i = 0; i < types; ++i) {  // small elements first: the worst for alignment
    const auto type = static_cast<data_type>(i);
    file.add(std::string(name_of(type)), {3}, type, std::span<const std::byte>(raw).first(3 * size_of(type)));
  }
  const std::vector<std::byte> bytes = file.to_bytes();
  const safetensors_reader back = open(bytes);
  REQUIRE(back.tensors().size() == types);
  for (const tensor_info& tensor : back.tensors()) {
    CAPTURE(tensor.name);
    CHECK(name_of(tensor.dtype) == tensor.name);
    CHECK(static_cast<std::size_t>(tensor.bytes.data() - bytes.data()) % size_of(tensor.dtype) == 0);
    REQUIRE(tensor.bytes.size() == 3 * size_of(tensor.dtype));
    CHECK(std::memcmp(tensor.bytes.data(), raw.data(), tensor.bytes.size()) == 0);
  }
}

TEST_CASE("safetensors_writer: larger elements first, then the order of the calls", "[io]") {
  const std::vector<float> f{1};
  const std::vector<double> d{2};
  const std::vector<std::uint8_t> u{3};
  const std::vector<std::int64_t> i{4};
  safetensors_writer file;
  file.add("z", {1}, f);
  file.add("u", {1}, u);
  file.add("y", {}, d);
  file.add("a", {1, 1}, f);
  file.add("x", {1}, i);
  const std::vector<std::byte> bytes = file.to_bytes();
  const safetensors_reader back = open(bytes);
  std::string order;
  for (const tensor_info& tensor : back.tensors()) order += tensor.name;
  CHECK(order == "yxzau");
  CHECK(file.to_bytes() == bytes);
}

TEST_CASE("safetensors_writer: names and metadata may hold any UTF-8, and are escaped", "[io]") {
  const std::vector<float> one{1};
  const std::string odd = "quote \" backslash \\ newline \n \x01 \xC3\xBC \xF0\x9F\x90\x99";
  safetensors_writer file;
  file.metadata(odd, odd + "!");
  file.metadata("steps", "1");
  file.metadata("steps", "2");
  file.add(odd, {1}, one);
  file.add("", {1}, one);
  const std::vector<std::byte> bytes = file.to_bytes();
  const safetensors_reader back = open(bytes);
  CHECK(back.metadata() == std::map<std::string, std::string>{{odd, odd + "!"}, {"steps", "2"}});
  CHECK(back.contains(odd));
  CHECK(back.contains(""));
}

TEST_CASE("safetensors_writer: wrong arguments are refused and change nothing", "[io]") {
  using test::contains;
  const std::vector<float> six(6);
  safetensors_writer file;
  file.add("w", {6}, six);
  const std::vector<std::byte> before = file.to_bytes();
  CHECK_THROWS_AS(file.add("w", {6}, six), std::invalid_argument);
  CHECK_THROWS_WITH(file.add("w", {6}, six), contains("\"w\" is added twice"));
  CHECK_THROWS_WITH(file.add("v", {2, 2}, six), contains("[2, 2] needs 16 bytes, is given 24"));
  CHECK_THROWS_WITH(file.add("v", {-2, -3}, six), contains("impossible shape [-2, -3]"));
  CHECK_THROWS_WITH(file.add("v", {INT64_MAX, 2}, six), contains("impossible shape"));
  CHECK_THROWS_WITH(file.add("v", std::vector<std::int64_t>(65, 1), six), contains("65 dimensions"));
  CHECK_THROWS_WITH(file.add("__metadata__", {6}, six), contains("reserves"));
  CHECK_THROWS_WITH(file.add("\xC0", {6}, six), contains("not UTF-8"));
  CHECK_THROWS_WITH(file.metadata("\xFF", "v"), contains("not UTF-8"));
  CHECK_THROWS_WITH(file.metadata("k", "\xFF"), contains("not UTF-8"));
  CHECK(file.to_bytes() == before);
  CHECK_NOTHROW(file.add("v", {2, 3}, six));
}

TEST_CASE("safetensors_writer: a temporary that would be gone at save is not accepted", "[io]") {
  STATIC_REQUIRE(Addable<std::vector<float>&>);
  STATIC_REQUIRE(Addable<const std::array<double, 1>&>);
  STATIC_REQUIRE(Addable<std::span<const float>>);
  STATIC_REQUIRE(!Addable<std::vector<float>>);
  STATIC_REQUIRE(!Addable<std::vector<std::string>&>);
}

TEST_CASE("safetensors_writer: save writes those bytes and replaces an older file", "[io]") {
  const test::temporary_folder folder;
  std::vector<double> numbers(1000, 1.0);
  safetensors_writer file;
  file.add("w", {1000}, numbers);
  file.save(folder / "file");
  CHECK(test::read_bytes(folder / "file") == text_of(file.to_bytes()));
  numbers.assign(1000, 2.0);
  file.save(folder / "file");
  CHECK(safetensors_reader(folder / "file").read_vector<double>("w") == numbers);
  CHECK(folder.file_count() == 1);
}

#if SLUICE_TEST_HAS_FORK

TEST_CASE("safetensors_writer: a reader that has opened a file keeps it when it is replaced", "[io]") {
  const test::temporary_folder folder;
  std::vector<double> numbers(1000, 1.0);
  safetensors_writer file;
  file.add("w", {1000}, numbers);
  file.save(folder / "file");
  const safetensors_reader old(folder / "file");
  numbers.assign(1000, 2.0);
  file.save(folder / "file");
  CHECK(old.read_vector<double>("w") == std::vector<double>(1000, 1.0));
}

TEST_CASE("safetensors_writer: a save that fails half-way leaves the old file", "[io]") {
  const test::temporary_folder folder;
  const std::vector<double> small(10, 1.0);
  const std::vector<double> large(10'000, 2.0);
  safetensors_writer first;
  first.add("w", {10}, small);
  first.save(folder / "file");
  const std::string before = test::read_bytes(folder / "file");

  const int code = test::exit_code_on_full_disk([&] {
    try {
      safetensors_writer second;
      second.add("w", {10'000}, large);
      second.save(folder / "file");
    } catch (const file_error&) {
      return 0;
    }
    return 3;
  });
  CHECK(code == 0);
  CHECK(test::read_bytes(folder / "file") == before);
  CHECK(folder.file_count() == 1);
}

#endif
