// One linear map applied through packed rows and multiply_panels, as banks do.
#pragma once

#include <sluice/kernel/grouped_gemm.hpp>

#include <algorithm>

namespace sluice::test {

using namespace sluice::kernel;

/// Packed rows with the memory that they lie in.
template <typename Storage>
struct packed_matrix {
  using scalar = typename Storage::scalar;
  buffer<sluice::detail::activation_of<Storage>> units;
  buffer<typename packed_rows<Storage>::factor> factors;
  row_blocks rows;
  index_t inputs;

  explicit packed_matrix(const matrix<scalar>& x, const Storage& format = {}) : rows(0, x.rows()), inputs(x.cols()) {
    units.resize(x.rows() * packed_rows<Storage>::pitch(x.cols()));
    factors.resize(x.rows() * packed_rows<Storage>::row_factors(x.cols()));
    for (index_t b = 0; b < rows.count(); ++b)
      pack_block(
          format, view(), rows, b, [&](index_t i) { return &x(i, 0); }, [](index_t) { return scalar(1); });
  }
  packed_rows<Storage> view() { return {units.data(), factors.data(), inputs, 0}; }
};

/// y = x W^T through multiply_panels.
template <PanelledMap Map>
matrix<typename Map::storage::scalar> packed_product(const matrix<typename Map::storage::scalar>& x, const Map& w) {
  using Storage = typename Map::storage;
  using scalar = typename Storage::scalar;
  constexpr index_t lanes = simd_width<scalar>;
  packed_matrix<Storage> packed(x, w.format());
  matrix<scalar> y = matrix<scalar>::Constant(x.rows(), w.outputs(), scalar(99));
  const index_t pairs = (w.panels() + 1) / 2;
  multiply_panels<Storage>(
      w.format(), packed.view(), packed.rows, 0, pairs,
      [&](index_t q) {
        const index_t last = w.panels() - 1;
        return streams<const std::byte*>{w.panel(std::min(2 * q, last)), w.panel(std::min(2 * q + 1, last))};
      },
      [&](index_t b, index_t q, const streams<const scalar*>& sums) {
        for (index_t i = 0; i < packed.rows.size(b); ++i)
          for (index_t v = 0; v < 2; ++v)
            for (index_t l = 0; l < lanes; ++l)
              if (const index_t o = (2 * q + v) * lanes + l; o < w.outputs())
                y(packed.rows.begin(b) + i, o) = sums[static_cast<std::size_t>(v)][i * lanes + l];
      });
  return y;
}

}  // namespace sluice::test
