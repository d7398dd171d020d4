// Bytes of ggml's blocks. Numbers of whole files are in the oracle replays; here are bytes worked out by hand.
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/format/ggml_blocks.hpp>

#include "support.hpp"

#include <vector>

using namespace sluice;

namespace {

std::vector<std::uint8_t> encoded_block(ggml_type type, const std::vector<float>& x) {
  std::vector<std::uint8_t> bytes(as_size(find_ggml_type(static_cast<std::uint32_t>(type))->bytes));
  REQUIRE(encode_ggml_block(type, x.data(), bytes.data()));
  return bytes;
}

}  // namespace

TEST_CASE("ggml_blocks: Q4_0 keeps the extreme number and clips its opposite", "[kernel][format]") {
  std::vector<float> x(32);
  x[0] = -8, x[1] = 7, x[16] = 3.5F, x[31] = 8;
  const auto bytes = encoded_block(ggml_type::q4_0, x);
  CHECK((bytes[0] == 0x00 && bytes[1] == 0x3C));                       // 1 as float16
  CHECK((bytes[2] == 0xC0 && bytes[3] == 0x8F && bytes[17] == 0xF8));  // codes 0 and 12, 15 and 8, 8 and 15
  std::vector<float> decoded(32);
  REQUIRE(decode_ggml_block(ggml_type::q4_0, bytes.data(), decoded.data()));
  CHECK((decoded[0] == -8 && decoded[16] == 4 && decoded[31] == 7));
}

TEST_CASE("ggml_blocks: TQ2_0 takes a half away from zero, by the scale before it is rounded", "[kernel][format]") {
  // 1.0002 is 1 as a float16, of which 0.50005 would be more than a half; of 1.0002 it is less.
  std::array<float, 256> x{}, back{};
  x[0] = 1.0002F, x[1] = 0.50005F, x[2] = -0.5001F, x[3] = 0.50011F, x[4] = -1.0002F;
  std::array<std::uint8_t, 66> bytes{};
  REQUIRE(encode_ggml_block(ggml_type::tq2_0, x.data(), bytes.data()));
  REQUIRE(decode_ggml_block(ggml_type::tq2_0, bytes.data(), back.data()));
  CHECK((back[0] == 1 && back[1] == 0 && back[2] == -1 && back[3] == 1 && back[4] == -1 && back[5] == 0));
  // 1 / 0.875 is not exact, and what is half of the largest still is.
  x.fill(0.4375F), x[9] = -0.875F, x[10] = -0.4375F;
  REQUIRE(encode_ggml_block(ggml_type::tq2_0, x.data(), bytes.data()));
  REQUIRE(decode_ggml_block(ggml_type::tq2_0, bytes.data(), back.data()));
  CHECK((back[0] == 0.875F && back[9] == -0.875F && back[10] == -0.875F));
}

TEST_CASE("ggml_blocks: Q4_K's scales and minima of six bits", "[kernel][format]") {
  coded_block b;
  const std::array<std::uint8_t, 8> scales{1, 2, 3, 4, 33, 63, 17, 50}, minima{5, 6, 7, 8, 40, 1, 63, 16};
  std::ranges::copy(scales, b.scales.begin());
  std::ranges::copy(minima, b.minima.begin());
  std::array<std::uint8_t, 144> bytes{};
  ggml_layout<ggml_type::q4_k>::pack(b, bytes.data());
  const std::array<std::uint8_t, 12> expected{0x81, 0xC2, 0x43, 0xC4, 0x85, 0x06, 0xC7, 0x48, 0x81, 0x1F, 0xF1, 0x02};
  CHECK(std::equal(expected.begin(), expected.end(), bytes.begin() + 4));
  const coded_block back = unpack_ggml_block<ggml_layout<ggml_type::q4_k>>(bytes.data());
  CHECK(back.scales == b.scales);
  CHECK(back.minima == b.minima);
}

TEST_CASE("ggml_blocks: any bytes unpack to a block that packs to them", "[kernel][format]") {
  for (const ggml_type_traits& type : ggml_types) {
    const bool has_layout = with_ggml_layout(type.type, [&]<typename Layout>(Layout) {
      CHECK(Layout::format::inputs == type.inputs);
      std::vector<std::uint8_t> bytes(as_size(type.bytes)), again(as_size(type.bytes));
      std::uint32_t state = 12345;
      for (auto& b : bytes) b = static_cast<std::uint8_t>((state = state * 1664525U + 1013904223U) >> 24U);
      // NaN as a scale may come back with other bits, and 0x7F of NVFP4 is 0; a byte of TQ1_0 has to be made of trits.
      if (type.type == ggml_type::nvfp4) bytes[0] = 1, bytes[1] = 2, bytes[2] = 3, bytes[3] = 0x7E;
      coded_block b = unpack_ggml_block<Layout>(bytes.data());
      if (is_nan(b.scale) || is_nan(b.minimum)) b.scale = b.minimum = 1;
      Layout::pack(b, again.data());
      const coded_block twice = unpack_ggml_block<Layout>(again.data());
      CAPTURE(type.name);
      CHECK(twice.codes == b.codes);
      CHECK(twice.scales == b.scales);
      CHECK(twice.minima == b.minima);
      CHECK((twice.scale == b.scale && twice.minimum == b.minimum));
      if (type.type != ggml_type::tq1_0 && b.scale != 1) CHECK(again == bytes);
    });
    std::array<float, 256> numbers;
    std::array<std::uint8_t, 512> zeros{};
    CHECK(decode_ggml_block(type.type, zeros.data(), numbers.data()) == has_layout);
    CHECK(encode_ggml_block(type.type, numbers.data(), zeros.data()) == has_layout);
  }
}

TEST_CASE("ggml_blocks: NVFP4's scales 0 and 0x7F are zero, and have no sign", "[kernel][format]") {
  std::array<std::uint8_t, 36> bytes;
  bytes.fill(0x22);
  bytes[0] = 0, bytes[1] = 0x7F, bytes[2] = 0x38, bytes[3] = 0x40;
  std::array<float, 64> numbers;
  decode_ggml_block(ggml_type::nvfp4, bytes.data(), numbers.data());
  CHECK((numbers[5] == 0 && numbers[20] == 0 && numbers[40] == 1 && numbers[63] == 2));
  bytes[0] = 0x80, bytes[1] = 0xB8, bytes[2] = 0x81;  // 0, 1 and the smallest, 2^-9, without the highest bit
  decode_ggml_block(ggml_type::nvfp4, bytes.data(), numbers.data());
  CHECK((numbers[5] == 0 && numbers[20] == 1 && numbers[40] == 0x1p-9F));
}

TEST_CASE("ggml_blocks: a map takes the blocks of its format, all of them", "[kernel][format]") {
  linear_map<coded_storage<q4_0_format>> map(3, 64);
  std::vector<std::uint8_t> bytes;
  matrix<float> w = test::random_matrix<float>(3, 64, 1);
  for (index_t i = 0; i < w.size(); i += 32) {
    const auto block = encoded_block(ggml_type::q4_0, std::vector<float>(w.data() + i, w.data() + i + 32));
    bytes.insert(bytes.end(), block.begin(), block.end());
    decode_ggml_block(ggml_type::q4_0, block.data(), w.data() + i);
  }
  assign_ggml_blocks(map, ggml_type::q4_0, std::as_bytes(std::span(bytes)));
  CHECK(map.weight().to_matrix() == w);
  CHECK_THROWS_AS(assign_ggml_blocks(map, ggml_type::q4_1, std::as_bytes(std::span(bytes))), std::invalid_argument);
  CHECK_THROWS_AS(assign_ggml_blocks(map, ggml_type::f32, std::as_bytes(std::span(bytes))), std::invalid_argument);
  bytes.pop_back();
  CHECK_THROWS_AS(assign_ggml_blocks(map, ggml_type::q4_0, std::as_bytes(std::span(bytes))), std::invalid_argument);
}
