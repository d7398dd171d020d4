#include <sluice/io/safetensors_reader.hpp>
#include <sluice/io/safetensors_writer.hpp>

#include "file_cases.hpp"
#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <bit>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace sluice;

namespace {

template <typename T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// A file of one tensor "w" with that data.
std::string one_tensor(const std::string& dtype, std::size_t count, const std::string& data) {
  return file_cases::file_of("{" +
                             file_cases::entry("w", dtype, "[" + std::to_string(count) + "]",
                                               "[0," + std::to_string(data.size()) + "]") +
                             "}") +
         data;
}

safetensors_reader open(const std::string& text) {
  return safetensors_reader::from_bytes(test::bytes_of(text), "memory");
}

template <typename T, typename Stored>
std::vector<T> read_stored(const std::string& dtype, const std::vector<Stored>& stored) {
  const std::string text = one_tensor(dtype, stored.size(), raw(stored));
  return open(text).read_vector<T>("w");
}

}  // namespace

TEST_CASE("safetensors_reader: a mapped file gives its tensors and metadata", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / "file.safetensors", file_cases::reference_style_file());
  safetensors_reader opened(folder / "file.safetensors");
  const safetensors_reader file = std::move(opened);  // the tensors stay where they are
  CHECK(file.tensors().size() == 3);
  CHECK(file.metadata().at("system") == "mixtral");
  CHECK(file.at("x").shape == std::vector<std::int64_t>{2, 3});
  CHECK(file.read_vector<float>("x") == std::vector<float>{1, -2, 0.5F, 0, 3, -1});
  CHECK(file.read_vector<double>("expected.aux_loss") == std::vector<double>{1.25});
  CHECK(file.read_vector<std::int64_t>("expected.indices") == std::vector<std::int64_t>{2, 0});
  CHECK(file.contains("x"));
  CHECK(!file.contains("y"));
  CHECK(file.find("expected") == nullptr);
}

TEST_CASE("safetensors_reader: a malformed file is refused with its path", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / "bad.safetensors", file_cases::little_endian(1000) + "{}");
  CHECK_THROWS_WITH(safetensors_reader(folder / "bad.safetensors"),
                    test::contains((folder / "bad.safetensors").string()) && test::contains("header length 1000"));
}

TEMPLATE_TEST_CASE("safetensors_reader: every floating-point type is read as float and double", "[io]", float, double) {
  using list = std::vector<TestType>;
  CHECK(read_stored<TestType>("F32", std::vector<float>{1.5F, -0x1p-120F}) == list{1.5, TestType(-0x1p-120)});
  CHECK(read_stored<TestType>("F64", std::vector<double>{0.25, -3}) == list{0.25, -3});
  CHECK(read_stored<TestType>("F16", std::vector<std::uint16_t>{0x3C00, 0xC000, 0x0001}) ==
        list{1, -2, TestType(0x1p-24)});
  CHECK(read_stored<TestType>("BF16", std::vector<std::uint16_t>{0x3F80, 0xC049}) == list{1, TestType(-3.140625)});
}

TEST_CASE("safetensors_reader: integers are read as their own type, I32 also as int64", "[io]") {
  CHECK(read_stored<std::int64_t>("I64", std::vector<std::int64_t>{INT64_MIN, 7}) ==
        std::vector<std::int64_t>{INT64_MIN, 7});
  CHECK(read_stored<std::int64_t>("I32", std::vector<std::int32_t>{INT32_MIN, 7}) ==
        std::vector<std::int64_t>{INT32_MIN, 7});
  CHECK(read_stored<std::int32_t>("I32", std::vector<std::int32_t>{-5}) == std::vector<std::int32_t>{-5});
  CHECK(read_stored<std::uint8_t>("U8", std::vector<std::uint8_t>{255}) == std::vector<std::uint8_t>{255});
  CHECK(read_stored<std::uint64_t>("U64", std::vector<std::uint64_t>{~0ULL}) == std::vector<std::uint64_t>{~0ULL});
}

TEST_CASE("safetensors_reader: NaN and infinities keep their bits", "[io]") {
  const std::vector<std::uint32_t> bits{0x7F800000U, 0xFF800000U, 0x7FC12345U};
  const std::string text = one_tensor("F32", bits.size(), raw(bits));
  CHECK(raw(open(text).read_vector<float>("w")) == raw(bits));
}

TEST_CASE("safetensors_reader: F64 as float rounds to nearest, keeps infinities, refuses what does not fit", "[io]") {
  const double infinity = std::bit_cast<double>(std::uint64_t{0x7FF0000000000000});
  const std::vector<float> got = read_stored<float>("F64", std::vector<double>{1 + 0x1p-24, 1 + 0x1.8p-23, infinity});
  CHECK(got[0] == 1.0F);  // half-way: to even
  CHECK(got[1] == 1 + 0x1p-22F);
  CHECK(std::bit_cast<std::uint32_t>(got[2]) == 0x7F800000U);

  const std::string text = one_tensor("F64", 2, raw(std::vector<double>{1, 1e300}));
  const safetensors_reader file = open(text);
  std::vector<float> out{-7, -7};
  CHECK_THROWS_WITH(file.read<float>("w", std::span<float>(out)), test::contains("element 1 is 1e+300"));
  CHECK(out == std::vector<float>{-7, -7});  // a read that throws has written nothing
  CHECK(file.read_vector<double>("w") == std::vector<double>{1, 1e300});
}

TEST_CASE("safetensors_reader: wrong names, types and sizes are refused with both sides named", "[io]") {
  using test::contains;
  const std::string text = file_cases::reference_style_file();
  const safetensors_reader file = open(text);
  std::vector<float> five(5);
  CHECK_THROWS_AS(file.at("y"), file_error);
  CHECK_THROWS_WITH(file.at("y"), contains("memory") && contains("tensor \"y\"") && contains("not in the file"));
  CHECK_THROWS_WITH(file.read<float>("x", std::span<float>(five)),
                    contains("tensor \"x\"") && contains("6 elements of shape [2, 3]") && contains("expected 5"));
  CHECK_THROWS_WITH(file.read_vector<std::int64_t>("x"), contains("is F32, cannot be read as I64"));
  CHECK_THROWS_WITH(file.read_vector<float>("expected.indices"), contains("is I64, cannot be read as F32"));
  CHECK_THROWS_WITH(file.read_vector<std::int32_t>("expected.indices"), contains("cannot be read as I32"));
  CHECK_THROWS_WITH(file.read_vector<std::uint64_t>("expected.indices"), contains("cannot be read as U64"));
}

TEST_CASE("safetensors_reader: tensors at any alignment are read", "[io]") {
  for (std::size_t shift = 0; shift < 8; ++shift) {
    const std::string data = std::string(shift, 'p') + raw(std::vector<double>{0.1, -2e300}) +
                             raw(std::vector<float>{3.5F}) + raw(std::vector<std::int64_t>{-9});
    const auto range = [shift](std::size_t begin, std::size_t end) {
      return "[" + std::to_string(shift + begin) + "," + std::to_string(shift + end) + "]";
    };
    const std::string padding =
        file_cases::entry("p", "U8", "[" + std::to_string(shift) + "]", "[0," + std::to_string(shift) + "]");
    const std::string text =
        file_cases::file_of("{" + padding + "," + file_cases::entry("d", "F64", "[2]", range(0, 16)) + "," +
                            file_cases::entry("f", "F32", "[]", range(16, 20)) + "," +
                            file_cases::entry("i", "I64", "[1,1]", range(20, 28)) + "}") +
        data;
    const safetensors_reader file = open(text);
    CAPTURE(shift);
    CHECK(file.read_vector<double>("d") == std::vector<double>{0.1, -2e300});
    CHECK(file.read_vector<double>("f") == std::vector<double>{3.5});
    CHECK(file.read_vector<std::int64_t>("i") == std::vector<std::int64_t>{-9});
  }
}

TEST_CASE("safetensors_reader: empty tensors are read as nothing", "[io]") {
  const std::string text = file_cases::file_of("{" + file_cases::entry("w", "F16", "[0,3]", "[0,0]") + "}");
  CHECK(open(text).read_vector<double>("w").empty());
}

TEST_CASE("safetensors_reader: a tensor of a type that is not known is refused where it is read, and can be copied",
          "[io]") {
  const std::string bytes =
      file_cases::file_of("{" + file_cases::entry("w", "F32", "[2]", "[0,8]") + "," +
                          file_cases::entry("freqs", "C64", "[1,2]", "[8,24]") + "," +
                          file_cases::entry("huge", "F4", "[4611686018427387904]", "[24,24]") + "}") +
      std::string("\0\0\x80\x3f\0\0\0\x40", 8) + "sixteen bytes, 2";
  const auto file = safetensors_reader::from_bytes(test::bytes_of(bytes), "f");
  CHECK(file.read_vector<float>("w") == std::vector<float>{1, 2});
  const tensor_info& freqs = file.at("freqs");
  CHECK(freqs.dtype == data_type::other);
  CHECK(freqs.type_name() == "C64");
  CHECK(freqs.elements() == 2);
  CHECK_THROWS_WITH(file.read_vector<float>("freqs"), test::contains("is C64, cannot be read as F32"));
  CHECK_THROWS_WITH(file.read_vector<float>("huge"), test::contains("is F4, cannot be read as F32"));

  safetensors_writer copy;
  copy.add(freqs);
  copy.add(file.at("w"));
  const std::vector<std::byte> copied = copy.to_bytes();
  const auto again = safetensors_reader::from_bytes(copied, "copy");
  CHECK(again.at("freqs").type_name() == "C64");
  CHECK(again.at("freqs").shape == freqs.shape);
  CHECK(std::ranges::equal(again.at("freqs").bytes, freqs.bytes));
  CHECK(again.read_vector<float>("w") == std::vector<float>{1, 2});
  CHECK_THROWS_AS(copy.add("x", {1}, data_type::other, std::span<const std::byte>()), std::invalid_argument);
}
