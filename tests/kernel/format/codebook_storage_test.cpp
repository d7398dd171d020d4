#include <sluice/kernel/format/codebook_storage.hpp>

#include "../packed_product.hpp"
#include "support.hpp"

using namespace sluice;

namespace {

/// Codes that do not repeat themselves: entries per stage as told, tiles of one direction.
vector_codes drawn_codes(index_t outputs, index_t inputs, index_t tile_outputs, index_t tile_inputs,
                         std::initializer_list<index_t> entries, index_t region_inputs = 0) {
  vector_codes codes;
  codes.outputs = outputs;
  codes.inputs = inputs;
  codes.tile_outputs = tile_outputs;
  codes.tile_inputs = tile_inputs;
  codes.region_inputs = region_inputs;
  std::uint64_t seed = 1;
  for (const index_t count : entries) {
    matrix<std::uint16_t> ids(codes.tile_rows(), codes.tile_cols());
    for (index_t i = 0; i < ids.size(); ++i)
      ids.data()[i] = static_cast<std::uint16_t>((7 * i + i * i / 3 + static_cast<index_t>(seed)) % count);
    codes.indices.push_back(ids);
    ++seed;
  }
  for (index_t r = 0; r < codes.regions(); ++r)
    for (const index_t count : entries)
      codes.codebooks.push_back(test::random_matrix<float>(count, tile_outputs * tile_inputs, seed++));
  return codes;
}

void add_scales(vector_codes& codes, index_t scale_inputs) {
  codes.scale_inputs = scale_inputs;
  codes.scales.resize(codes.outputs, codes.scale_groups());
  for (index_t i = 0; i < codes.scales.size(); ++i) codes.scales.data()[i] = 0.25F * static_cast<float>(i % 13 + 1);
}

template <typename Storage>
void check_codebook_map(const vector_codes& codes) {
  const auto map = packed_map<Storage>(codes);
  const matrix<float> w = codes.to_matrix();
  CHECK(test::same_bits(map.weight().to_matrix(), w));
  const matrix<float> x = test::random_matrix<float>(3, codes.inputs, 77);
  const matrix<float> expected = (x.cast<double>() * w.cast<double>().transpose()).cast<float>();
  const float largest = w.cwiseAbs().maxCoeff() * x.cwiseAbs().maxCoeff();
  CHECK(test::largest_difference(test::packed_product(x, map), expected) <= test::bound<float>(codes.inputs, largest));
}

}  // namespace

TEST_CASE("codebook storage: vectors along the inputs, products and numbers are those of the codes",
          "[kernel][format]") {
  vector_codes codes = drawn_codes(19, 300, 1, 8, {200});
  add_scales(codes, 0);
  check_codebook_map<codebook_storage<8, 8, vector_direction::along_inputs>>(codes);
  check_codebook_map<codebook_storage<8, 9, vector_direction::along_inputs, float>>(codes);  // elements across bytes
  codes = drawn_codes(19, 300, 1, 4, {16, 32}, 128);  // a region of codebooks a block
  add_scales(codes, 128);
  check_codebook_map<codebook_storage<4, 9, vector_direction::along_inputs>>(codes);
  codes = drawn_codes(5, 70, 1, 2, {3, 5, 9});
  check_codebook_map<codebook_storage<2, 32, vector_direction::along_inputs, no_scale, 32>>(codes);
}

TEST_CASE("codebook storage: vectors along the outputs", "[kernel][format]") {
  vector_codes codes = drawn_codes(43, 131, 8, 1, {300, 7});
  check_codebook_map<codebook_storage<8, 12, vector_direction::along_outputs, no_scale>>(codes);
  codes = drawn_codes(43, 40, 4, 1, {256});
  add_scales(codes, 32);
  check_codebook_map<codebook_storage<4, 8, vector_direction::along_outputs, float16, 32>>(codes);
  codes = drawn_codes(3, 32, 2, 1, {1});
  check_codebook_map<codebook_storage<2, 1, vector_direction::along_outputs, no_scale, 32>>(codes);
}

TEST_CASE("codebook storage: what it cannot hold is refused", "[kernel][format]") {
  using storage = codebook_storage<8, 8, vector_direction::along_inputs>;
  vector_codes codes = drawn_codes(5, 128, 1, 8, {256});
  add_scales(codes, 0);
  CHECK_NOTHROW(packed_map<storage>(codes));
  CHECK_THROWS_AS((packed_map<codebook_storage<8, 7, vector_direction::along_inputs>>(codes)), std::invalid_argument);
  CHECK_THROWS_AS((packed_map<codebook_storage<4, 8, vector_direction::along_inputs>>(codes)), std::invalid_argument);
  CHECK_THROWS_AS((packed_map<codebook_storage<8, 8, vector_direction::along_outputs>>(codes)), std::invalid_argument);
  CHECK_THROWS_AS((packed_map<codebook_storage<8, 8, vector_direction::along_inputs, no_scale>>(codes)),
                  std::invalid_argument);
  codes.scales(3, 0) = 1.0001F;  // no half
  CHECK_THROWS_AS(packed_map<storage>(codes), std::invalid_argument);
  add_scales(codes, 64);
  CHECK_THROWS_AS(packed_map<storage>(codes), std::invalid_argument);
}

TEST_CASE("codebook storage: numbers find their entries, bad ones make a lane's block NaN", "[kernel][format]") {
  using storage = codebook_storage<4, 8, vector_direction::along_inputs, no_scale>;
  const vector_codes codes = drawn_codes(7, 132, 1, 4, {256});
  const auto map = packed_map<storage>(codes);
  linear_map<storage> again(7, 132, map.format());
  again.weight().assign(map.weight().to_matrix());
  CHECK(test::same_bits(again.weight().to_matrix(), map.weight().to_matrix()));

  using scaled = codebook_storage<4, 8, vector_direction::along_inputs>;
  linear_map<scaled> near(7, 132, scaled(codes));
  matrix<float> w = 3 * test::random_matrix<float>(7, 132, 5);
  near.weight().assign(w);
  // 256 entries for four normal numbers leave about a fifth of their square, and the scale suits the largest only.
  CHECK((near.weight().to_matrix() - w).squaredNorm() < 0.6F * w.squaredNorm());
  w(2, 131) = std::numeric_limits<float>::infinity();
  near.weight().assign(w);
  const matrix<float> decoded = near.weight().to_matrix();
  CHECK((is_nan(decoded(2, 128)) && is_nan(decoded(2, 131)) && !is_nan(decoded(2, 127)) && !is_nan(decoded(1, 131))));
}
