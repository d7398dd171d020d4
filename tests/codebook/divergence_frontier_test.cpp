#include <sluice/codebook/divergence_frontier.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

code_usage usage_of(const std::vector<index_t>& counts) {
  code_usage usage(static_cast<index_t>(counts.size()));
  for (index_t c = 0; c < usage.codes(); ++c)
    for (index_t n = 0; n < counts[as_size(c)]; ++n) usage.add(&c, 1);
  return usage;
}

}  // namespace

TEST_CASE("divergence_frontier: samples with the same histogram, and with nothing in common", "[codebook][usage]") {
  const auto same = make_divergence_frontier(usage_of({3, 1, 0, 4}), usage_of({6, 2, 0, 8}));
  CHECK(same.score == Approx(1));
  CHECK(same.integral == Approx(0).margin(1e-12));
  const auto apart = make_divergence_frontier(usage_of({3, 1, 0, 0}), usage_of({0, 0, 5, 2}));
  CHECK(apart.score < 0.01);
  CHECK(apart.integral == Approx(1));
  CHECK(apart.curve.size() == 27);
}

TEST_CASE("divergence_frontier: who is first does not matter, and smoothing brings them together", "[codebook][usage]") {
  const auto p = usage_of({9, 1, 2}), q = usage_of({2, 8, 0});
  const auto one = make_divergence_frontier(p, q), other = make_divergence_frontier(q, p);
  CHECK(one.score == Approx(other.score));
  CHECK(one.integral == Approx(other.integral));
  CHECK(make_divergence_frontier(p, q, {.smoothing = 0.5}).score > one.score);
}

TEST_CASE("divergence_frontier: what cannot be compared is refused", "[codebook][usage]") {
  CHECK_THROWS_AS(make_divergence_frontier(usage_of({1, 2}), usage_of({1, 2, 3})), std::invalid_argument);
  CHECK_THROWS_AS(make_divergence_frontier(usage_of({1, 2}), usage_of({0, 0})), std::invalid_argument);
  CHECK_THROWS_AS(make_divergence_frontier(usage_of({1, 2}), usage_of({1, 0}), {.grid = 1}), std::invalid_argument);
}
