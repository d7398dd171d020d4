#include <sluice/kernel/format/vector_codes.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

/// Tiles of 2 x 2 of a matrix [3,5], two stages, regions of two columns of tiles, scales for three inputs.
vector_codes tiled_codes() {
  vector_codes codes;
  codes.outputs = 3;
  codes.inputs = 5;
  codes.tile_outputs = codes.tile_inputs = 2;
  codes.region_inputs = 4;
  codes.scale_inputs = 3;
  for (index_t r = 0; r < 2; ++r)
    for (index_t m = 0; m < 2; ++m)
      codes.codebooks.push_back(test::random_matrix<float>(3 + m, 4, as_size(10 * r + m)));
  codes.indices.assign(2, matrix<std::uint16_t>(2, 3));
  codes.indices[0] << 0, 1, 2, 2, 1, 0;
  codes.indices[1] << 3, 2, 1, 0, 1, 2;
  codes.scales = test::random_matrix<float>(3, 2, 99);
  return codes;
}

}  // namespace

TEST_CASE("vector codes: a weight is its scale times the sum of the entries of its tile", "[kernel][format]") {
  const vector_codes codes = tiled_codes();
  codes.validate();
  CHECK(codes.regions() == 2);
  const matrix<float> w = codes.to_matrix();
  // Output 2, input 3: tile (1, 1) of the first region, place (0, 1) in it, second scale of the row.
  CHECK(w(2, 3) == codes.scales(2, 1) * (codes.codebooks[0](1, 1) + codes.codebooks[1](1, 1)));
  // Output 1, input 4: tile (0, 2) of the second region, place (1, 0).
  CHECK(w(1, 4) == codes.scales(1, 1) * (codes.codebooks[2](2, 2) + codes.codebooks[3](1, 2)));
  vector_codes plain = codes;
  plain.scale_inputs = 0;
  plain.scales.resize(0, 0);
  CHECK(plain.to_matrix()(1, 4) == codes.codebooks[2](2, 2) + codes.codebooks[3](1, 2));
  plain.scales = codes.scales.leftCols(1);
  CHECK(plain.to_matrix()(1, 4) == codes.scales(1, 0) * (codes.codebooks[2](2, 2) + codes.codebooks[3](1, 2)));
}

TEST_CASE("vector codes: what does not fit together is refused", "[kernel][format]") {
  const auto refuses = [](auto&& change) {
    vector_codes codes = tiled_codes();
    change(codes);
    CHECK_THROWS_AS(codes.validate(), std::invalid_argument);
  };
  refuses([](vector_codes& c) { c.inputs = -1; });
  refuses([](vector_codes& c) { c.tile_inputs = 0; });
  refuses([](vector_codes& c) { c.region_inputs = 3; });
  refuses([](vector_codes& c) { c.codebooks.pop_back(); });
  refuses([](vector_codes& c) { c.codebooks[1].resize(4, 3); });
  refuses([](vector_codes& c) { c.scale_inputs = 2; });
  refuses([](vector_codes& c) { c.indices[0].resize(2, 2); });
  refuses([](vector_codes& c) { c.indices[1](1, 2) = 4; });
  refuses([](vector_codes& c) { c.indices.clear(); });
  vector_codes empty;
  empty.indices.assign(1, {});
  empty.codebooks.assign(1, matrix<float>(0, 1));
  CHECK_NOTHROW(empty.validate());
  CHECK(empty.to_matrix().size() == 0);
}
