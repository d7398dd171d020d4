#include <sluice/kernel/format/grid_storage.hpp>

#include "../packed_product.hpp"
#include "support.hpp"

#include <cmath>
#include <vector>

using namespace sluice;

namespace {

/// Blocks of any bits but with a d of moderate size.
template <typename Format>
std::vector<std::byte> grid_bytes(index_t blocks, std::uint64_t seed) {
  const random_source random(seed);
  std::vector<std::byte> bytes(as_size(blocks * Format::block_bytes));
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(256 * random.uniform(random_site::user_site, static_cast<index_t>(i)));
  for (index_t b = 0; b < blocks; ++b)
    Format::set_half(bytes.data() + b * Format::block_bytes, round_to<float16>(0.01F * static_cast<float>(b + 1)));
  return bytes;
}

/// A map [outputs, inputs] of such blocks, and its numbers by the decoder of one block.
template <typename Format>
struct grid_map {
  using storage = grid_storage<Format>;
  linear_map<storage> map;
  matrix<float> numbers;

  grid_map(index_t outputs, index_t blocks, std::uint64_t seed)
      : map(outputs, blocks * storage::block), numbers(outputs, blocks * storage::block) {
    const auto bytes = grid_bytes<Format>(outputs * blocks, seed);
    const auto row = [&](index_t o) { return bytes.data() + o * blocks * Format::block_bytes; };
    for (index_t o = 0; o < outputs; ++o)
      for (index_t b = 0; b < blocks; ++b)
        decode_grid_block<Format>(row(o) + b * Format::block_bytes, &numbers(o, b * storage::block));
    for (index_t p = 0; p < map.panels(); ++p)
      storage::pack_rows(
          [&](index_t l) { return p * storage::lanes + l < outputs ? row(p * storage::lanes + l) : nullptr; }, 0,
          blocks, map.weight().data() + p * sluice::detail::panel_bytes<storage>(map.inputs()));
  }
};

}  // namespace

TEMPLATE_TEST_CASE("grid storages: panels have the numbers of the file's blocks, and so do products",
                   "[kernel][format]", iq1_s, iq1_m, iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s) {
  const grid_map<TestType> coded(19, 2, 3);
  const matrix<float>& numbers = coded.numbers;
  CHECK(test::same_bits(coded.map.weight().to_matrix(), numbers));
  CHECK(coded.map.weight().element_at(18 * 512 + 300) == numbers(18, 300));
  // Parts of a panel, begun within a run.
  std::vector<float> part(as_size(60 * coded.map.format().lanes));
  coded.map.format().decode(coded.map.panel(1), 237, 297, part.data());
  CHECK(part[as_size(59 * coded.map.format().lanes)] ==
        (coded.map.format().lanes < 19 ? numbers(coded.map.format().lanes, 296) : 0));
  const matrix<float> x = test::random_matrix<float>(5, 512, 4);
  const matrix<float> y = test::packed_product(x, coded.map);
  const matrix<float> expected = (x.cast<double>() * numbers.cast<double>().transpose()).cast<float>();
  CHECK(test::largest_difference(y, expected) <=
        test::bound<float>(512, numbers.cwiseAbs().maxCoeff() * x.cwiseAbs().maxCoeff()));
}

TEMPLATE_TEST_CASE("grid storages: numbers become near ones, and blocks with NaN or infinity are NaN",
                   "[kernel][format]", iq1_s, iq1_m, iq2_xxs, iq2_s, iq3_s) {
  const matrix<float> w = test::random_matrix<float>(2, 256, 5);
  std::vector<std::byte> block(as_size(TestType::block_bytes));
  matrix<float> decoded(2, 256);
  for (index_t o = 0; o < 2; ++o) {
    encode_grid_block<TestType>(&w(o, 0), block.data());
    decode_grid_block<TestType>(block.data(), &decoded(o, 0));
  }
  // A normal number's best 2 bits leave 12 % of its square, its sign alone 36 %; grids of entries far apart are between.
  const double left = (w - decoded).squaredNorm() / w.squaredNorm();
  CHECK(left < (TestType::grid.entries == 2048 ? 0.40 : TestType::grid.length == 8 ? 0.18 : 0.07));

  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    matrix<float> row = w.row(0);
    row(0, 77) = bad;
    encode_grid_block<TestType>(row.data(), block.data());
    decode_grid_block<TestType>(block.data(), row.data());
    for (index_t i = 0; i < 256; ++i) CHECK(is_nan(row(0, i)));
  }
  matrix<float> zeros = matrix<float>::Zero(1, 256);
  encode_grid_block<TestType>(zeros.data(), block.data());
  decode_grid_block<TestType>(block.data(), zeros.data());
  CHECK(zeros.cwiseAbs().maxCoeff() == 0);
}
