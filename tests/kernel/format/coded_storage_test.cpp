// Every format of quantised weights against its readable decoding, in both roads, on any shape.
#include <sluice/kernel/format/formats.hpp>
#include <sluice/kernel/linear_map.hpp>

#include "../packed_product.hpp"
#include "support.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

using namespace sluice;

namespace {

/// Any codes and scales: what a file may hold. Scales of one block are numbers of the format's kind.
template <typename Format>
coded_block drawn_block(std::uint64_t seed) {
  std::uint64_t state = seed * 0x9E3779B97F4A7C15U + 1;
  const auto next = [&state] {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return static_cast<std::uint32_t>(state >> 33U);
  };
  coded_block b;
  constexpr std::uint32_t codes = 1U << Format::codes::bits;
  for (index_t i = 0; i < Format::inputs; ++i) {
    auto code = next() % codes;
    if (!Format::levels::is_whole && (code & 0x7FU) == 0x7FU) code = 0x7E;  // NaN is tested apart
    b.codes[as_size(i)] = static_cast<std::uint8_t>(code);
  }
  for (std::size_t r = 0; r < 16; ++r) {
    b.scales[r] = static_cast<std::uint8_t>(next() % 15 + 112);  // exponents, and e4m3 of half of the range
    if constexpr (requires { Format::scales::most_code; }) {
      b.scales[r] = static_cast<std::uint8_t>(next() % (Format::scales::most_code + 1U));
      b.minima[r] = static_cast<std::uint8_t>(next() % (Format::scales::most_code + 1U));
    }
  }
  if constexpr (Format::scales::has_zero)
    b.minima[0] = static_cast<std::uint8_t>(128 - Format::levels::zero + int(next() % codes));
  const float size = std::exp2(static_cast<float>(next() % 9) - 6);
  b.scale =
      to_float(round_to<bfloat16>(size * (next() % 2 ? 1.0F : -1.0F) * (1 + static_cast<float>(next() % 64) / 64)));
  b.minimum = to_float(round_to<bfloat16>(size * static_cast<float>(next() % 64) / 16));
  return b;
}

template <typename Format, arithmetic By = arithmetic::floats>
linear_map<coded_storage<Format, By>> drawn_coded_map(index_t outputs, index_t inputs) {
  linear_map<coded_storage<Format, By>> map(outputs, inputs);
  map.weight().fill_coded(
      [&](index_t o, index_t first) { return drawn_block<Format>(std::uint64_t(o * 1000 + first + 7)); });
  return map;
}

template <typename Format>
matrix<float> readable(index_t outputs, index_t inputs) {
  matrix<float> w(outputs, inputs);
  for (index_t o = 0; o < outputs; ++o)
    for (index_t i = 0; i < inputs; ++i) {
      const index_t first = i / Format::inputs * Format::inputs;
      w(o, i) = Format::value(drawn_block<Format>(std::uint64_t(o * 1000 + first + 7)), i - first);
    }
  return w;
}

/// What is multiplied and added to make weight i of a block, in sum of magnitudes.
template <typename Format>
double size_of_terms(const coded_block& b, index_t i) {
  using scales = typename Format::scales;
  const double scale = scales::scale(b, i / scales::run), minimum = scales::minimum(b, i / scales::run);
  double level = std::abs(double(Format::levels::value(b.codes[as_size(i)])));
  if constexpr (scales::has_zero) level += std::abs(double(scales::zero(b)));
  return std::abs(scale) * level + std::abs(minimum);
}

/// Sums of whole numbers, as a plain loop takes them: of every run, its activations rounded to 8 bits.
template <typename Format>
double rounded_product(const matrix<float>& w, index_t o, const matrix<float>& x, index_t t, double& sizes) {
  double sum = 0;
  sizes = 0;
  for (index_t first = 0; first < w.cols(); first += Format::scales::run) {
    const auto part = x.row(t).segment(first, std::min(Format::scales::run, w.cols() - first));
    const float scale = part.cwiseAbs().maxCoeff() / 127;
    const index_t block = first / Format::inputs * Format::inputs;
    const coded_block b = drawn_block<Format>(std::uint64_t(o * 1000 + block + 7));
    for (index_t i = 0; i < part.size(); ++i) {
      const double q = std::nearbyint(part(i) / scale) * scale;
      sum += q * w(o, first + i);
      sizes += std::abs(q) * size_of_terms<Format>(b, first - block + i);
    }
  }
  return sum;
}

/// A panel of drawn blocks: decoded from any input to any other, and expanded to bytes, against readable decoding.
template <typename Format>
void check_format(double bits) {
  using storage = coded_storage<Format>;
  constexpr index_t lanes = kernel::simd_width<float>, inputs = 4 * Format::inputs;
  CHECK(std::abs(storage::bits_a_weight - bits) < 0.01);
  const matrix<float> w = readable<Format>(lanes, inputs);
  std::vector<std::byte> panel(as_size(storage::bytes(inputs)));
  coded_block drawn;
  for (index_t first = 0; first < inputs; first += Format::inputs) {
    std::byte* const at = panel.data() + storage::bytes(first);
    const auto block = [&](index_t l) -> const coded_block& {
      return drawn = drawn_block<Format>(std::uint64_t(l * 1000 + first + 7));
    };
    Format::put(block, at);
    CHECK(Format::get(at, lanes - 1).codes == block(lanes - 1).codes);
  }
  for (const auto& [begin, end] :
       {std::pair<index_t, index_t>(0, inputs), {5, 6}, {Format::inputs - 3, Format::inputs + 20}}) {
    std::vector<float> numbers(as_size((end - begin) * lanes), 99.0F);
    storage().decode(panel.data(), begin, end, numbers.data());
    index_t wrong = 0;
    for (index_t i = begin; i < end; ++i)
      for (index_t l = 0; l < lanes; ++l) wrong += numbers[as_size((i - begin) * lanes + l)] != w(l, i);
    CAPTURE(begin, end);
    REQUIRE(wrong == 0);
  }
  using bytes = coded_storage<Format, arithmetic::bytes>;
  static_assert(bytes::bytes(inputs) == storage::bytes(inputs));
  if constexpr (sluice::detail::is_expanded<bytes>) {
    using tiles = typename bytes::tiles;
    std::vector<std::byte> expanded(as_size(tiles::bytes(inputs / 4)));
    bytes::expand(panel.data(), 0, inputs, expanded.data());
    index_t wrong = 0;
    for (index_t i = 0; i < inputs; ++i)
      for (index_t l = 0; l < lanes; ++l) {
        const std::byte* const block = expanded.data() + i / Format::scales::run * tiles::block_bytes;
        float terms[2] = {0, 0};
        std::memcpy(terms, block + 4 * l, 4);
        if constexpr (tiles::codes_at > tiles::vector_bytes)
          std::memcpy(terms + 1, block + tiles::vector_bytes + 4 * l, 4);
        const index_t step = i % Format::scales::run / 4;
        const int level = std::to_integer<int>(block[tiles::codes_at + (step * lanes + l) * 4 + i % 4]) - 128;
        const coded_block b = drawn_block<Format>(std::uint64_t(l * 1000 + i / Format::inputs * Format::inputs + 7));
        const double off = std::abs(double(terms[0]) * level + terms[1] - w(l, i));
        wrong += !(off <= 0x1p-23 * size_of_terms<Format>(b, i % Format::inputs));
      }
    CHECK(wrong == 0);
  }
}

/// Products of maps, in both roads, on any shape.
template <typename Format>
void check_coded_products() {
  constexpr index_t block = Format::inputs, lanes = kernel::simd_width<float>;
  for (const index_t inputs : {index_t(1), block - 1, 3 * block + 40}) {
    const index_t outputs = inputs > block ? 9 * lanes + 3 : lanes + 1;
    const auto exact = drawn_coded_map<Format>(outputs, inputs);
    const matrix<float> w = readable<Format>(outputs, inputs);
    CAPTURE(inputs, outputs);
    REQUIRE(exact.weight().to_matrix() == w);
    for (const index_t i : {index_t(0), inputs / 2, w.size() - 1}) CHECK(exact.weight().element_at(i) == w.data()[i]);
    CHECK(exact.weight().coded_block_at(outputs - 1, inputs - 1).scale ==
          drawn_block<Format>(std::uint64_t((outputs - 1) * 1000 + (inputs - 1) / block * block + 7)).scale);
    linear_map<full_precision<float>> plain(outputs, inputs);
    plain.weight().assign(w);
    for (const index_t n : {1, 3, 17}) {
      const matrix<float> x = test::random_matrix<float>(n, inputs, 5);
      CHECK(test::same_bits(test::packed_product(x, exact), test::packed_product(x, plain)));
    }
    const auto bytes = drawn_coded_map<Format, arithmetic::bytes>(outputs, inputs);
    CHECK(std::ranges::equal(bytes.weight().value(), exact.weight().value()));
    matrix<float> x = test::random_matrix<float>(17, inputs, 6);
    const matrix<float> y = test::packed_product(x, bytes);
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t o = 0; o < outputs; o += 5) {
        double sizes = 0;
        const double sum = rounded_product<Format>(w, o, x, t, sizes);
        CAPTURE(t, o);
        CHECK(std::abs(y(t, o) - sum) <= (double(inputs) / Format::scales::run + 8) * 0x1p-23 * sizes);
      }
    // Alone, with few, and beside rows that are no numbers, a row has the same bits.
    for (const index_t n : {1, 2, 5}) {
      const matrix<float> few = x.bottomRows(n);
      CHECK(test::same_bits(test::packed_product(few, bytes), matrix<float>(y.bottomRows(n))));
    }
    x(3, inputs / 2) = std::numeric_limits<float>::quiet_NaN();
    x(4, 0) = std::numeric_limits<float>::infinity();
    const matrix<float> spoiled = test::packed_product(x, bytes);
    CHECK(test::same_bits(matrix<float>(spoiled.bottomRows(12)), matrix<float>(y.bottomRows(12))));
    const matrix<float> alone = test::packed_product(matrix<float>(x.middleRows(3, 2)), bytes);
    for (const auto& both : {matrix<float>(spoiled.middleRows(3, 2)), alone}) {
      for (index_t o = 0; o < outputs; ++o) CHECK(is_nan(both(0, o)));
      for (index_t o = 0; o < outputs; ++o)
        CHECK((sluice::detail::bits_of(both(1, o)) & 0x7FFFFFFF) >= sluice::detail::infinity_bits<float>);
    }
  }
}

/// More inputs than tiles take at a time, few rows and many.
template <typename Format>
void check_parts() {
  constexpr index_t inputs = 4 * kernel::k_block + Format::inputs + 3, outputs = 8 * kernel::simd_width<float> + 1;
  const auto map = drawn_coded_map<Format, arithmetic::bytes>(outputs, inputs);
  const matrix<float> x = test::random_matrix<float>(15, inputs, 7), y = test::packed_product(x, map);
  for (const index_t n : {1, 5})
    CHECK(test::same_bits(test::packed_product(matrix<float>(x.topRows(n)), map), matrix<float>(y.topRows(n))));
  double sizes = 0;
  const double sum = rounded_product<Format>(readable<Format>(outputs, inputs), outputs - 1, x, 14, sizes);
  CHECK(std::abs(y(14, outputs - 1) - sum) <= (double(inputs) / Format::scales::run + 8) * 0x1p-23 * sizes);
}

/// Numbers of a matrix of L outputs as a format rounds them.
template <typename Format>
matrix<float> rounded_by(const matrix<float>& w) {
  using storage = coded_storage<Format>;
  std::vector<std::byte> panel(as_size(storage::bytes(w.cols())));
  const matrix<float> numbers = w.transpose();
  storage::encode(numbers.data(), 0, w.cols(), panel.data());
  matrix<float> decoded(w.cols(), w.rows());
  storage().decode(panel.data(), 0, w.cols(), decoded.data());
  return decoded.transpose();
}

template <typename Format>
double relative_error(const matrix<float>& w) {
  return std::sqrt(double((rounded_by<Format>(w) - w).squaredNorm()) / double(w.squaredNorm()));
}

}  // namespace

TEST_CASE("coded_storage: products in several parts", "[kernel][format]") {
  check_parts<q8_0_format>();
  check_parts<q4_0_format>();
  check_parts<q4_k_format>();
  check_parts<q2_k_format>();
  check_parts<q6_k_format>();
}

TEST_CASE("coded_storage: formats with one scale a block", "[kernel][format]") {
  check_format<q8_0_format>(8.5);
  check_format<q4_0_format>(4.5);
  check_format<q5_0_format>(5.5);
  check_format<q4_1_format>(5);
  check_format<q5_1_format>(6);
  check_format<iq4_nl_format>(4.5);
  check_format<ternary_format>(2.0625);
}

TEST_CASE("coded_storage: formats with scales of scales", "[kernel][format]") {
  check_format<q2_k_format>(2.625);
  check_format<q3_k_format>(3.4375);
  check_format<q4_k_format>(4.5);
  check_format<q5_k_format>(5.5);
  check_format<q6_k_format>(6.5625);
  check_format<iq4_xs_format>(4.3125);
}

TEST_CASE("coded_storage: floats of eight and four bits", "[kernel][format]") {
  check_format<mxfp4_format>(4.25);
  check_format<nvfp4_format>(4.5);
  check_format<scaled_nvfp4_format>(4.625);
  check_format<fp8_format>(8.25);
}

TEST_CASE("coded_storage: groups, symmetric and with zeros", "[kernel][format]") {
  check_format<symmetric_format<2, float16, 64>>(2.25);
  check_format<symmetric_format<3, float, 32>>(4);
  check_format<symmetric_format<8, float, 256>>(8.125);
  check_format<zero_point_format<4, float16, 16>>(5.5);
  check_format<zero_point_format<4, float, 128>>(4.3125);
  check_format<zero_point_format<8, bfloat16, 64>>(8.375);
}

TEST_CASE("coded_storage: products are those of the decoded weights, or of whole numbers", "[kernel][format]") {
  check_coded_products<q4_k_format>();
}

TEST_CASE("coded_storage: numbers are rounded as well as bits allow", "[kernel][format]") {
  matrix<float> w = test::random_matrix<float>(kernel::simd_width<float>, 512, 3);
  for (index_t o = 0; o < w.rows(); ++o) w.row(o) *= std::exp2(static_cast<float>(o % 5 - 3));
  CHECK(relative_error<q8_0_format>(w) < 0.006);
  CHECK(relative_error<q6_k_format>(w) < 0.02);
  CHECK(relative_error<q5_k_format>(w) < 0.04);
  CHECK(relative_error<q4_k_format>(w) < 0.08);
  CHECK(relative_error<q3_k_format>(w) < 0.17);
  CHECK(relative_error<q2_k_format>(w) < 0.3);
  CHECK(relative_error<iq4_xs_format>(w) < 0.08);
  CHECK(relative_error<iq4_nl_format>(w) < 0.08);
  CHECK(relative_error<mxfp4_format>(w) < 0.13);
  CHECK(relative_error<nvfp4_format>(w) < 0.11);
  CHECK(relative_error<scaled_nvfp4_format>(w) < 0.11);
  CHECK(relative_error<fp8_format>(w) < 0.03);
  CHECK(relative_error<q5_0_format>(w) < 0.05);
  CHECK(relative_error<zero_point_format<4, float16, 32>>(w) < 0.09);
  CHECK(relative_error<symmetric_format<6, float16, 64>>(w) < 0.03);
}

TEST_CASE("coded_storage: NaN, infinity and zero stay in their block", "[kernel][format]") {
  matrix<float> w = test::random_matrix<float>(kernel::simd_width<float>, 512, 4);
  w(0, 300) = std::numeric_limits<float>::quiet_NaN();
  w(1, 3) = std::numeric_limits<float>::infinity();
  w.row(2).setZero();
  const auto check = [&]<typename Format>(Format) {
    const matrix<float> decoded = rounded_by<Format>(w);
    index_t wrong = 0;
    for (index_t i = 0; i < 512; ++i) {
      wrong += is_nan(decoded(0, i)) != (i / Format::inputs == 300 / Format::inputs);
      wrong += is_nan(decoded(1, i)) != (i / Format::inputs == 0);
      wrong += decoded(2, i) != 0;
    }
    CHECK(wrong == 0);
  };
  check(q8_0_format());
  check(q4_1_format());
  check(q6_k_format());
  check(q2_k_format());
  check(iq4_xs_format());
  check(mxfp4_format());
  check(nvfp4_format());
  check(fp8_format());
  check(zero_point_format<4, float, 128>());
}

TEST_CASE("coded_storage: every code of e4m3, NaN too", "[kernel][format]") {
  constexpr index_t lanes = kernel::simd_width<float>;
  std::vector<std::byte> panel(as_size(coded_storage<fp8_format>::bytes(256)));
  coded_block b;
  b.scale = 0.5F;
  for (const index_t first : {0, 128}) {
    for (std::size_t i = 0; i < 128; ++i) b.codes[i] = static_cast<std::uint8_t>(i + as_size(first));
    fp8_format::put([&](index_t) -> const coded_block& { return b; },
                    panel.data() + coded_storage<fp8_format>::bytes(first));
  }
  std::vector<float> numbers(as_size(256 * lanes));
  coded_storage<fp8_format>().decode(panel.data(), 0, 256, numbers.data());
  for (std::size_t i = 0; i < 256; ++i) {
    const float exact = e4m3_to_float(static_cast<std::uint8_t>(i)), number = numbers[i * as_size(lanes)];
    CAPTURE(i, number);
    CHECK((is_nan(exact) ? is_nan(number) : number == exact * 0.5F));
    CHECK(round_to_e4m3(exact) == i);
  }
}
