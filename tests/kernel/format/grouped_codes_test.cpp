#include <sluice/core/numeric.hpp>
#include <sluice/kernel/format/ggml_types.hpp>
#include <sluice/kernel/format/grouped_codes.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

grouped_codes few_grouped_codes() {
  grouped_codes c;
  c.codes.resize(2, 5);
  c.codes << 0, 1, 2, 3, 15, 7, 8, 9, 10, 11;
  c.scales.resize(2, 3);
  c.scales << 1, 0.5F, 2, 0.25F, 4, 8;
  c.group = 2;
  c.bits = 4;
  return c;
}

}  // namespace

TEST_CASE("grouped_codes: scale times code less zero, and a minimum", "[kernel][format]") {
  grouped_codes c = few_grouped_codes();
  c.validate();
  matrix<float> expected(2, 5);
  expected << 0, 1, 1, 1.5F, 30, 1.75F, 2, 36, 40, 88;
  CHECK(c.to_matrix() == expected);
  c.zeros = matrix<float>::Constant(2, 3, 8);
  CHECK(c.value(0, 4) == 14);
  CHECK(c.value(1, 0) == -0.25F);
  c.minima = matrix<float>::Constant(2, 3, 0.5F);
  CHECK(c.value(1, 0) == 0.25F);
  c.zeros.resize(0, 0);
  CHECK(c.value(0, 4) == 30.5F);
  c.validate();
}

TEST_CASE("grouped_codes: inputs in groups of any order, and a scale of the whole tensor", "[kernel][format]") {
  grouped_codes c = few_grouped_codes();
  c.group_of = {2, 0, 1, 0, 2};
  c.tensor_scale = 0.5F;
  c.validate();
  matrix<float> expected(2, 5);
  expected << 0, 0.5F, 0.5F, 1.5F, 15, 28, 1, 18, 1.25F, 44;
  CHECK(c.to_matrix() == expected);
}

TEST_CASE("grouped_codes: codes that are small floats", "[kernel][format]") {
  grouped_codes c = few_grouped_codes();
  c.meaning = code_meaning::e2m1;
  CHECK(c.value(0, 4) == -12);
  CHECK(c.value(1, 0) == 1.5F);
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::uint8_t>(code);
    const int exponent = code >> 3 & 15, fraction = code & 7;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
    if ((code & 0x7F) == 0x7F)
      CHECK(is_nan(e4m3_to_float(byte)));
    else
      CHECK(e4m3_to_float(byte) == static_cast<float>(code < 128 ? magnitude : -magnitude));
    if (code == 255)
      CHECK(is_nan(e8m0_to_float(byte)));
    else
      CHECK(sluice::detail::bits_of(e8m0_to_float(byte)) == (code == 0 ? 1 << 22 : code << 23));
  }
}

TEST_CASE("grouped_codes: what does not fit is told", "[kernel][format]") {
  const auto refused = [](auto&& change) {
    grouped_codes c = few_grouped_codes();
    change(c);
    CHECK_THROWS_AS(c.validate(), std::invalid_argument);
  };
  refused([](grouped_codes& c) { c.group = 3; });
  refused([](grouped_codes& c) { c.group = 0; });
  refused([](grouped_codes& c) { c.bits = 3; });
  refused([](grouped_codes& c) { c.bits = 9; });
  refused([](grouped_codes& c) { c.scales.resize(1, 3); });
  refused([](grouped_codes& c) { c.zeros = matrix<float>::Zero(2, 2); });
  refused([](grouped_codes& c) { c.minima = matrix<float>::Zero(1, 3); });
  refused([](grouped_codes& c) { c.group_of = {0, 1, 2, 3, 0}; });
  refused([](grouped_codes& c) { c.group_of = {0, -1, 2, 2, 0}; });
  refused([](grouped_codes& c) { c.group_of = {0, 1}; });
  refused([](grouped_codes& c) { c.meaning = code_meaning::e4m3; });
  grouped_codes().validate();
}

TEST_CASE("ggml_types: numbers, blocks and bits of the formats", "[kernel][format]") {
  CHECK(find_ggml_type(4) == nullptr);
  CHECK(find_ggml_type(1000) == nullptr);
  CHECK(find_ggml_type(39)->name == "mxfp4");
  CHECK(find_ggml_type(14)->bytes == 210);
  for (const ggml_type_traits& t : ggml_types) CHECK(find_ggml_type(static_cast<std::uint32_t>(t.type)) == &t);
}
