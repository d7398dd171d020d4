// Codes of quantisers and files as blocks of storages: the same numbers, or a refusal.
#include <sluice/kernel/format/group_blocks.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

grouped_codes drawn_group_codes(index_t outputs, index_t inputs, int bits, index_t group, bool with_zeros) {
  grouped_codes c;
  const matrix<float> random = test::random_matrix<float>(outputs, inputs, 9).cwiseAbs();
  const float codes = static_cast<float>((1 << bits) - 1);
  c.codes =
      (random * 1000).unaryExpr([&](float v) { return std::fmod(std::floor(v), codes + 1); }).cast<std::uint8_t>();
  c.group = group, c.bits = bits;
  const index_t groups = (inputs + group - 1) / group;
  c.scales =
      test::random_matrix<float>(outputs, groups, 10).unaryExpr([](float v) { return to_float(round_to<float16>(v)); });
  if (with_zeros)
    c.zeros = (test::random_matrix<float>(outputs, groups, 11).cwiseAbs() * codes).array().round().min(codes);
  else
    c.zeros = matrix<float>::Constant(outputs, groups, static_cast<float>(1 << (bits - 1)));
  return c;
}

template <typename Format>
bool takes(const grouped_codes& c) {
  linear_map<coded_storage<Format>> map(c.outputs(), c.inputs());
  if (!holds_codes<Format>(c)) {
    CHECK_THROWS_AS(assign_codes(map, c), std::invalid_argument);
    return false;
  }
  assign_codes(map, c);
  CHECK(map.weight().to_matrix() == c.to_matrix());
  return true;
}

}  // namespace

TEST_CASE("group_blocks: groups of 32, 64, 128 and 16, with zeros and without", "[kernel][format]") {
  const auto symmetric = drawn_group_codes(5, 200, 4, 64, false), zeros = drawn_group_codes(5, 200, 4, 64, true);
  CHECK(takes<symmetric_format<4, float16, 64>>(symmetric));
  CHECK(takes<symmetric_format<4, float16, 32>>(symmetric));  // a scale is kept twice
  CHECK(takes<zero_point_format<4, float16, 64>>(symmetric));
  CHECK(takes<zero_point_format<4, float16, 64>>(zeros));
  CHECK(!takes<symmetric_format<4, float16, 64>>(zeros));
  CHECK(!takes<symmetric_format<4, float16, 128>>(symmetric));
  CHECK(!takes<symmetric_format<4, bfloat16, 64>>(symmetric));  // scales of eleven bits
  CHECK(takes<zero_point_format<8, float, 32>>(drawn_group_codes(3, 70, 8, 32, true)));
  CHECK(takes<zero_point_format<3, float16, 16>>(drawn_group_codes(3, 70, 3, 16, true)));
  CHECK(!takes<symmetric_format<3, float16, 64>>(symmetric));  // more bits than the format has
}

TEST_CASE("group_blocks: inputs in groups of any order only where blocks lie in one", "[kernel][format]") {
  auto c = drawn_group_codes(3, 96, 4, 32, true);
  for (index_t i = 0; i < 96; ++i) c.group_of.push_back(static_cast<std::int32_t>(2 - i / 32));
  CHECK(takes<zero_point_format<4, float16, 32>>(c));
  std::swap(c.group_of[0], c.group_of[50]);
  CHECK(!takes<zero_point_format<4, float16, 32>>(c));
}

TEST_CASE("group_blocks: floats of four and eight bits, and minima", "[kernel][format]") {
  auto c = drawn_group_codes(4, 96, 4, 32, false);
  c.zeros.resize(0, 0);
  c.minima = c.scales * -4;
  CHECK(takes<q4_1_format>(c));
  c.minima.resize(0, 0);
  c.meaning = code_meaning::e2m1;
  CHECK(!takes<mxfp4_format>(c));
  c.scales = c.scales.unaryExpr([](float v) { return v > 0 ? 0x1p-127F : 4.0F; });
  CHECK(takes<mxfp4_format>(c));

  auto n = drawn_group_codes(4, 300, 4, 16, false);
  n.zeros.resize(0, 0);
  n.meaning = code_meaning::e2m1;
  n.scales = n.scales.unaryExpr([](float v) { return e4m3_to_float(round_to_e4m3(std::abs(v))); });
  CHECK(takes<nvfp4_format>(n));
  n.tensor_scale = 0.3F;
#ifndef __FAST_MATH__  // which multiplies the three factors in any order, so that codes are not sure to mean the same number
  CHECK(takes<scaled_nvfp4_format>(n));
#endif
  CHECK(!takes<nvfp4_format>(n));

  auto f = drawn_group_codes(4, 300, 8, 128, false);
  f.zeros.resize(0, 0);
  f.meaning = code_meaning::e4m3;
  f.codes = f.codes.cwiseMin(std::uint8_t(0x7E));
  f.scales.array() *= 1.1F;
  CHECK(takes<fp8_format>(f));
}
