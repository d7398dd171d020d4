#include <sluice/codebook/repair/split_most_used.hpp>

#include <sluice/codebook/codes/counted.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "../codebook_checks.hpp"

using namespace sluice;

TEST_CASE("split_most_used: unused codes take the vectors of the most used, each of which gives one copy",
          "[codebook]") {
  vector_quantizer q{counted_codes{learned_codes<double>{5, 2}, {.decay = 0.5}},
                     split_most_used{.unused_below = 0.1, .noise = 0}};
  const matrix<double> table = (matrix<double>(5, 2) << 0, 0, 10, 0, 90, 90, 0, 10, 80, 80).finished();
  q.codebook().table().assign(table);
  q.codebook().sizes().fill([](index_t c) { return c == 2 || c == 4 ? 0.0 : 1.0; });
  const matrix<double> x = (matrix<double>(6, 2) << 10, 0, 10, 0, 10, 0, 0, 10, 0, 10, 0, 0).finished();
  matrix<double> y(6, 2);
  decltype(q)::tape tape;
  q.forward(x, y, tape);
  q.after_step(tape);
  REQUIRE(tape.replaced.size() == 2);
  const matrix<double> after = q.codebook().table().to_matrix();
  CHECK(test::same_bits(after.row(2), table.row(1)));
  CHECK(test::same_bits(after.row(4), table.row(3)));
  CHECK(q.codebook().sizes().to_matrix().isApprox((matrix<double>(5, 1) << 1, 1, 1, 0.75, 0.75).finished()));
}

TEST_CASE("split_most_used: where more than half are unused half are replaced", "[codebook]") {
  most_used_split split;
  const std::array<double, 7> sizes = {0, 0, 3, 0, 0, 5, 0};
  split.find(sizes.data(), 7, 1e-6, [](index_t) { return 0.99; });
  REQUIRE(split.size() == 2);  // three of them, but there are two to copy
  CHECK(split.donor(0) == 5);
  CHECK(split.donor(1) == 2);
  CHECK(sizes[as_size(split.taker(0))] == 0);
  CHECK(split.taker(0) < split.taker(1));
  CHECK_THROWS_AS(split.find(sizes.data(), 7, -1.0, [](index_t) { return 0.5; }), std::invalid_argument);
}

TEST_CASE("split_most_used: every promise of a layer", "[codebook][conformance]") {
  test::check_quantizer_promises(vector_quantizer{counted_codes{learned_codes<double>{11, 6}}, split_most_used{}}, 5);
}
