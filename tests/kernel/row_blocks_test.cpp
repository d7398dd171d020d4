#include <sluice/kernel/row_blocks.hpp>

#include "support.hpp"

#include <vector>

using namespace sluice;
using namespace sluice::kernel;

TEST_CASE("row_blocks: blocks of equal height cover the rows", "[kernel]") {
  for (index_t n = 0; n <= 100; ++n) {
    CAPTURE(n);
    const row_blocks rows(7, n);
    index_t covered = 0;
    for (index_t b = 0; b < rows.count(); ++b) {
      CHECK(rows.begin(b) == 7 + covered);
      CHECK(rows.size(b) >= 1);
      CHECK(rows.size(b) <= tile_rows);
      if (b + 1 < rows.count()) CHECK(rows.size(b) == rows.height());
      covered += rows.size(b);
    }
    CHECK(covered == n);
    CHECK(rows.count() == (n + tile_rows - 1) / tile_rows);
  }
}

TEMPLATE_TEST_CASE("pack_block: every number in its place, zeros after the last", "[kernel]", float, double) {
  using storage = full_precision<TestType>;
  using packed = packed_rows<storage>;
  constexpr index_t lanes = packed::lanes;
  const index_t inputs = GENERATE(index_t(1), index_t(7), index_t(16), index_t(37), index_t(64));
  const index_t n = 3 * tile_rows + 2;
  const matrix<TestType> x = test::random_matrix<TestType>(n, inputs, 1);
  std::vector<TestType> memory(static_cast<std::size_t>(n * packed::pitch(inputs)), TestType(99));
  const packed to{memory.data(), nullptr, inputs, 10};
  const row_blocks rows(10, n);
  for (index_t b = 0; b < rows.count(); ++b)
    pack_block(
        storage(), to, rows, b, [&](index_t i) { return &x(n - 1 - (i - 10), 0); }, [](index_t i) { return TestType(i % 2 + 1); });
  for (index_t b = 0; b < rows.count(); ++b)
    for (index_t i = 0; i < rows.size(b); ++i)
      for (index_t k = 0; k < packed::pitch(inputs); ++k) {
        const index_t row = rows.begin(b) + i;
        const TestType expected = k < inputs ? x(n - 1 - (row - 10), k) * TestType(row % 2 + 1) : TestType(0);
        CHECK(to.panel(rows, b, i, k / lanes)[k % lanes] == expected);
      }
}
