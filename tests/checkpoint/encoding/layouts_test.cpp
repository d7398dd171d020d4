// What goes wrong with layouts of quantised weights, each a test: which way a scale acts, how codes are packed, what a
// stored zero means, partial tiles, and parts that do not fit together.
#include <sluice/checkpoint/encoding/fp8_tiles.hpp>
#include <sluice/checkpoint/encoding/mxfp4_rows.hpp>
#include <sluice/checkpoint/encoding/nvfp4_rows.hpp>
#include <sluice/checkpoint/encoding/packed_inputs.hpp>
#include <sluice/checkpoint/encoding/packed_words.hpp>

#include "../../io/messages.hpp"
#include "support.hpp"

#include <bit>
#include <cstdint>
#include <deque>
#include <limits>
#include <vector>

using namespace sluice;
using test::contains;

namespace {

/// Tensors whose bytes live as long as this.
class layout_parts {
public:
  template <typename T>
  tensor_info add(const std::string& name, data_type type, std::vector<std::int64_t> shape, std::vector<T> values) {
    const auto* const begin = reinterpret_cast<const std::byte*>(values.data());
    kept_.emplace_back(begin, begin + values.size() * sizeof(T));
    return {name, type, std::move(shape), kept_.back()};
  }
  tensor_info floats(const std::string& name, std::vector<std::int64_t> shape, std::vector<float> values) {
    return add(name, data_type::f32, std::move(shape), std::move(values));
  }
  tensor_info words(const std::string& name, std::vector<std::int64_t> shape, std::vector<std::uint32_t> values) {
    return add(name, data_type::i32, std::move(shape), std::move(values));
  }
  tensor_info bytes(const std::string& name, data_type type, std::vector<std::int64_t> shape,
                    std::vector<std::uint8_t> values) {
    return add(name, type, std::move(shape), std::move(values));
  }

private:
  std::deque<std::vector<std::byte>> kept_;
};

std::vector<float> row_of(const coded_matrix& coded, index_t row) {
  std::vector<float> out(as_size(coded.inputs()));
  coded.read(as_size(row * coded.inputs()), out);
  const matrix<float> by_codes = coded.codes(row, 1, 1).to_matrix();  // the same numbers, whichever way
  for (index_t i = 0; i < coded.inputs(); ++i)
    CHECK(detail::bits_of(by_codes(0, i)) == detail::bits_of(out[as_size(i)]));
  return out;
}

/// The same code in every nibble of eight bytes.
std::vector<std::uint8_t> sixteen_of(std::uint8_t code) {
  return std::vector<std::uint8_t>(8, static_cast<std::uint8_t>(code | code << 4));
}

}  // namespace

TEST_CASE("fp8_tiles: the scale multiplies, whatever it is called, and edge tiles are partial",
          "[checkpoint][encoding]") {
  layout_parts parts;
  std::vector<std::uint8_t> ones(130 * 129, 0x38);  // 1
  const tensor_info weight = parts.bytes("w", data_type::f8_e4m3, {130, 129}, ones);
  const fp8_tiles coded(weight, parts.floats("w_scale_inv", {2, 2}, {2, 4, 8, 16}), 128, 128);
  CHECK(row_of(coded, 0)[127] == 2);
  CHECK(row_of(coded, 127)[128] == 4);
  CHECK(row_of(coded, 128)[0] == 8);
  CHECK(row_of(coded, 129)[128] == 16);
  const auto bf16 = [](float value) { return round_to<bfloat16>(value).bits; };
  const std::vector<std::uint16_t> halves{bf16(2), bf16(4), bf16(8), bf16(16)};
  const fp8_tiles by_bf16(weight, parts.add("w_scale_inv", data_type::bf16, {2, 2}, halves), 0, 0);  // 128 if not told
  CHECK(row_of(by_bf16, 129) == row_of(coded, 129));
  const tensor_info exponents = parts.bytes("w_scale_inv", data_type::f8_e8m0, {2, 2}, {128, 129, 130, 131});
  CHECK(row_of(fp8_tiles(weight, exponents, 128, 128), 129) == row_of(coded, 129));
  CHECK_THROWS_WITH(fp8_tiles(weight, parts.floats("s", {1, 2}, {1, 1}), 128, 128),
                    contains("\"s\" is F32 [1, 2], must be F32 or BF16 or F16 or F8_E8M0 or U8 [2, 2]"));
}

TEST_CASE("fp8_tiles: a scale a row, a scale for all, and a stack of matrices", "[checkpoint][encoding]") {
  layout_parts parts;
  const tensor_info weight = parts.bytes("w", data_type::f8_e4m3, {2, 3}, {0x38, 0x40, 0xB8, 0x38, 0x01, 0x7F});
  const fp8_tiles by_row(weight, parts.floats("s", {2, 1}, {2, 3}), 0, 0);
  CHECK(row_of(by_row, 0) == std::vector<float>{2, 4, -2});
  CHECK(row_of(by_row, 1)[1] == 3 * 0x1p-9F);
  CHECK(is_nan(by_row.codes(1, 1, 1).value(0, 2)));
  for (const auto& shape : {std::vector<std::int64_t>{}, std::vector<std::int64_t>{1}})
    CHECK(row_of(fp8_tiles(weight, parts.floats("s", shape, {5}), 0, 0), 0) == std::vector<float>{5, 10, -5});
  const tensor_info stack = parts.bytes("w", data_type::f8_e4m3, {2, 1, 2}, {0x38, 0x38, 0x40, 0x40});
  const fp8_tiles stacked(stack, parts.floats("s", {2, 1, 1}, {1, 10}), 128, 128);
  CHECK(row_of(stacked, 1) == std::vector<float>{20, 20});
  CHECK_THROWS_WITH(fp8_tiles(stack, parts.floats("s", {1}, {1}), 128, 128), contains("a scale a matrix"));
  CHECK_THROWS_WITH(fp8_tiles(parts.bytes("w", data_type::f8_e5m2, {1, 1}, {0}), weight, 0, 0),
                    contains("F8_E5M2 [1, 1]"));
}

TEST_CASE("mxfp4_rows: neighbours share a byte, the low nibble first, and nothing is flushed to zero",
          "[checkpoint][encoding]") {
  layout_parts parts;
  std::vector<std::uint8_t> blocks(32, 0);
  blocks[0] = 0x21;  // 0.5, 1
  blocks[1] = 0xF7;  // 6, -6
  blocks[16] = 0x31;
  const mxfp4_rows coded(parts.bytes("b", data_type::u8, {1, 2, 1, 16}, blocks),
                         parts.bytes("s", data_type::u8, {1, 2, 1}, {128, 0}));
  CHECK(coded.shape() == std::vector<std::int64_t>{1, 2, 32});
  const std::vector<float> first = row_of(coded, 0);
  CHECK(std::vector<float>(first.begin(), first.begin() + 5) == std::vector<float>{1, 2, 12, -12, 0});
  std::vector<float> second(32);
  coded.read(32, second);
  CHECK(detail::bits_of(second[0]) == 0x00200000U);  // 2^-128
  CHECK(detail::bits_of(second[1]) == 0x00600000U);  // 1.5 * 2^-127
  const mxfp4_rows flat(parts.bytes("w", data_type::i8, {2, 16}, blocks),
                        parts.bytes("s", data_type::f8_e8m0, {2, 1}, {128, 255}));
  CHECK(row_of(flat, 0) == first);
  std::vector<float> no_numbers(32);
  flat.read(32, no_numbers);
  CHECK(is_nan(no_numbers[7]));
  CHECK_THROWS_WITH(mxfp4_rows(parts.bytes("b", data_type::u8, {1, 2, 1, 16}, blocks),
                               parts.bytes("s", data_type::u8, {1, 2, 2}, {1, 1, 1, 1})),
                    contains("\"s\" is U8 [1, 2, 2], must be U8 or F8_E8M0 [1, 2, 1]"));
  CHECK_THROWS_WITH(mxfp4_rows(parts.floats("b", {1, 16}, std::vector<float>(16)),
                               flat.shape().empty() ? tensor_info{} : tensor_info{}),
                    contains("\"b\" is F32 [1, 16], must be U8"));
}

TEST_CASE("mxfp4: every code with every exponent is its product", "[checkpoint][encoding]") {
  // By whole numbers of 2^-149, the smallest float, which are exact in double: no subnormal float is calculated with.
  const auto in_smallest = [](float number) {
    const auto bits = std::bit_cast<std::uint32_t>(number);
    const std::uint32_t field = bits >> 23U & 0xFFU, fraction = bits & 0x7FFFFFU;
    const double size =
        field == 0 ? fraction : std::ldexp(static_cast<double>(fraction | 0x800000U), static_cast<int>(field) - 1);
    return bits >> 31U != 0 ? -size : size;
  };
  for (unsigned exponent = 0; exponent < 253; ++exponent)  // beyond, some are infinite
    for (unsigned code = 0; code < 16; ++code) {
      const double wanted = std::ldexp(static_cast<double>(e2m1_doubled[code]), static_cast<int>(exponent) - 128 + 149);
      CHECK(in_smallest(detail::mxfp4_value(static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(exponent))) ==
            wanted);
    }
  CHECK(detail::bits_of(detail::mxfp4_value(7, 254)) == 0x7F800000);
}

TEST_CASE("nvfp4_rows: one global scale divides, the other multiplies", "[checkpoint][encoding]") {
  layout_parts parts;
  std::vector<std::uint8_t> codes = sixteen_of(2);  // 1
  codes[0] = 0x51;                                  // 0.5, 3
  const tensor_info weight = parts.bytes("w", data_type::u8, {1, 8}, codes);
  const tensor_info scale = parts.bytes("s", data_type::f8_e4m3, {1, 1}, {0x40});  // 2
  const tensor_info global = parts.floats("g", {1}, {4});
  using enum nvfp4_rows::global_scale;
  CHECK(row_of(nvfp4_rows(weight, scale, global, divides), 0)[2] == 0.5F);
  const std::vector<float> row = row_of(nvfp4_rows(weight, scale, global, multiplies), 0);
  CHECK(std::vector<float>(row.begin(), row.begin() + 3) == std::vector<float>{4, 24, 8});
  CHECK_THROWS_WITH(nvfp4_rows(weight, scale, parts.floats("g", {1}, {0}), divides),
                    contains("value 0, must be above 0"));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinite = std::numeric_limits<float>::infinity();
  for (const float g : {infinite, std::numeric_limits<float>::denorm_min()})
    CHECK_THROWS_WITH(nvfp4_rows(weight, scale, parts.floats("g", {1}, {g}), divides), contains("and finite"));
  CHECK_THROWS_WITH(nvfp4_rows(weight, scale, parts.floats("g", {1}, {nan}), multiplies), contains("must be above 0"));
  CHECK_THROWS_WITH(nvfp4_rows(weight, parts.bytes("s", data_type::f8_e4m3, {1, 2}, {1, 1}), global, divides),
                    contains("\"s\" is F8_E4M3 [1, 2], must be F8_E4M3 or U8 [1, 1]"));
}

TEST_CASE("packed_words: GPTQ has inputs in a word, AWQ has outputs, in another order", "[checkpoint][encoding]") {
  layout_parts parts;
  using enum packed_words::form;
  const auto ones = [&](std::int64_t outputs) {
    return parts.floats("scales", {1, outputs}, std::vector<float>(as_size(outputs), 1));
  };
  // One output, eight inputs 0 .. 7; stored zero 0 means 1, or 0 in the second version.
  const tensor_info column = parts.words("qweight", {1, 8}, std::vector<std::uint32_t>(8, 0x76543210U));
  const tensor_info no_zeros = parts.words("qzeros", {1, 1}, {0});
  CHECK(row_of(packed_words({column, no_zeros, ones(8)}, gptq, 4, -1), 3) ==
        std::vector<float>{-1, 0, 1, 2, 3, 4, 5, 6});
  CHECK(row_of(packed_words({column, no_zeros, ones(8)}, gptq_v2, 4, -1), 3) ==
        std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7});
  const tensor_info wrapped = parts.words("qzeros", {1, 1}, {0xFFFFFFFFU});  // 15 and one more is 0
  CHECK(row_of(packed_words({column, wrapped, ones(8)}, gptq, 4, -1), 0)[7] == 7);
  // One input, eight outputs; the nibbles hold outputs 0 2 4 6 1 3 5 7.
  const packed_words by_output({parts.words("qweight", {1, 1}, {0x75316420U}), no_zeros, ones(8)}, awq, 4, -1);
  for (index_t o = 0; o < 8; ++o) CHECK(row_of(by_output, o) == std::vector<float>{static_cast<float>(o)});
  const packed_words with_zeros(
      {parts.words("qweight", {1, 1}, {0xFFFFFFFFU}), parts.words("qzeros", {1, 1}, {0x75316420U}), ones(8)}, awq, 4,
      -1);
  CHECK(row_of(with_zeros, 5) == std::vector<float>{10});
}

TEST_CASE("packed_words: codes of three bits straddle words, and groups come in any order", "[checkpoint][encoding]") {
  layout_parts parts;
  // Inputs 0 .. 31 have the codes i % 8, as a stream of 96 bits in the words of one column of 32 equal ones.
  std::uint32_t stream[3] = {};
  for (unsigned i = 0; i < 32; ++i)
    for (unsigned bit = 0; bit < 3; ++bit)
      if ((i % 8) >> bit & 1U) stream[(3 * i + bit) / 32] |= 1U << (3 * i + bit) % 32;
  std::vector<std::uint32_t> words;
  for (const std::uint32_t word : stream) words.insert(words.end(), 32, word);
  std::vector<float> scales(64, 1);
  std::fill(scales.begin() + 32, scales.end(), 10.0F);
  std::vector<std::uint32_t> group_of(32);
  for (unsigned i = 0; i < 32; ++i) group_of[i] = i % 2;
  const tensor_info weight = parts.words("qweight", {3, 32}, words),
                    zeros = parts.words("qzeros", {2, 3}, std::vector<std::uint32_t>(6));
  const tensor_info scale = parts.floats("scales", {2, 32}, scales), groups = parts.words("g_idx", {32}, group_of);
  const std::vector<float> row =
      row_of(packed_words({weight, zeros, scale, &groups}, packed_words::form::gptq_v2, 3, 16), 31);
  for (unsigned i = 0; i < 32; ++i) CHECK(row[i] == static_cast<float>((i % 8) * (i % 2 == 0 ? 1 : 10)));
  group_of[9] = 2;
  const tensor_info strays = parts.words("g_idx", {32}, group_of);
  CHECK_THROWS_WITH(packed_words({weight, zeros, scale, &strays}, packed_words::form::gptq, 3, 16),
                    contains("\"g_idx\" has input 9 in group 2 of 2"));
}

TEST_CASE("packed_words: what does not fit together is refused with its shapes", "[checkpoint][encoding]") {
  layout_parts parts;
  using enum packed_words::form;
  const tensor_info weight = parts.words("qweight", {2, 8}, std::vector<std::uint32_t>(16));
  const tensor_info zeros = parts.words("qzeros", {1, 1}, {0}),
                    scale = parts.floats("scales", {1, 8}, std::vector<float>(8));
  CHECK_THROWS_WITH(packed_words({weight, zeros, scale}, gptq, 5, -1),
                    contains("codes of 5 bits; GPTQ weights have 2, 3, 4 or 8"));
  CHECK_THROWS_WITH(packed_words({weight, zeros, scale}, awq, 3, -1), contains("AWQ weights have 4"));
  CHECK_THROWS_WITH(packed_words({weight, zeros, scale}, awq, 4, -1),
                    contains("must be I32 [inputs, outputs / 8]; scales say 8"));
  CHECK_THROWS_WITH(packed_words({weight, zeros, scale}, gptq, 4, 8),
                    contains("16 inputs in groups of 8 make 2 groups"));
  CHECK_THROWS_WITH(packed_words({weight, parts.words("qzeros", {1, 2}, {0, 0}), scale}, gptq, 4, -1),
                    contains("\"qzeros\" is I32 [1, 2], must be I32 [1, 1]"));
  CHECK_THROWS_WITH(packed_words({scale, zeros, scale}, gptq, 4, -1), contains("\"scales\" is F32 [1, 8]"));
}

TEST_CASE("packed_inputs: an offset that zeros share, padding, and groups in any order", "[checkpoint][encoding]") {
  layout_parts parts;
  // Rows of 9 inputs in two words; all codes 8 + i % 8 - 4, which is i % 8 - 4 without the offset.
  std::vector<std::uint32_t> packed;
  for (int row = 0; row < 2; ++row) packed.insert(packed.end(), {0xBA987654U, 0x4U});
  const tensor_info weight = parts.words("weight_packed", {2, 2}, packed),
                    shape = parts.words("weight_shape", {2}, {2, 9});
  const tensor_info scale = parts.floats("weight_scale", {2, 3}, {1, 10, 100, 1, 10, 100});
  const std::vector<float> symmetric = row_of(packed_inputs({weight, scale, shape}, 4, 3), 1);
  CHECK(symmetric == std::vector<float>{-4, -3, -2, -10, 0, 10, 200, 300, -400});
  // Zeros of two outputs in a word, with the same offset: -1 and 2.
  const tensor_info zeros = parts.words("weight_zero_point", {1, 3}, {0xA7U, 0xA7U, 0xA7U});
  CHECK(row_of(packed_inputs({weight, scale, shape, &zeros}, 4, 3), 0)[4] == 10);
  CHECK(row_of(packed_inputs({weight, scale, shape, &zeros}, 4, 3), 1)[4] == -20);
  const tensor_info groups = parts.words("weight_g_idx", {9}, {2, 1, 0, 2, 1, 0, 2, 1, 0});
  CHECK(row_of(packed_inputs({weight, scale, shape, nullptr, &groups}, 4, 3), 0)[0] == -400);
  const tensor_info none = parts.words("weight_g_idx", {9}, std::vector<std::uint32_t>(9, ~0U));  // not reordered
  CHECK(row_of(packed_inputs({weight, scale, shape, nullptr, &none}, 4, 3), 1) == symmetric);
  CHECK_THROWS_WITH(packed_inputs({weight, scale, shape, nullptr, &none}, 4, -1), contains("[2, 3], must be"));
  // Bits that groups of the config do not share: 9 codes of 4 bits are two words, of 8 bits three.
  CHECK(row_of(packed_inputs({weight, scale, shape}, 0, 3), 1) == symmetric);
  CHECK(packed_inputs({parts.words("weight_packed", {2, 3}, {0, 0, 0, 0, 0, 0}), scale, shape}, 0, 3).bits() == 8);
  CHECK_THROWS_WITH(packed_inputs({parts.words("weight_packed", {2, 4}, {0, 0, 0, 0, 0, 0, 0, 0}), scale, shape}, 0, 3),
                    contains("neither the config nor its length says how many bits"));
  CHECK_THROWS_WITH(packed_inputs({weight, scale, shape}, 3, 3),
                    contains("codes of 3 bits; pack-quantized weights have 4 or 8"));
  CHECK_THROWS_WITH(packed_inputs({weight, scale, shape}, 8, 3), contains("must be I32 [2, 3]"));
  CHECK_THROWS_WITH(packed_inputs({weight, scale, shape}, 4, -1), contains("must be BF16 or F16 or F32 [2, 1]"));
  CHECK_THROWS_WITH(packed_inputs({weight, scale, parts.words("weight_shape", {2}, {~0U, 9})}, 4, 3),
                    contains("says [-1, 9]"));
  CHECK_THROWS_WITH(packed_inputs({weight, scale, parts.words("weight_shape", {2}, {3, 9})}, 4, 3),
                    contains("must be I32 [3, 2]"));
}
