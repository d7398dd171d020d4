#include <sluice/codebook/search/cost_bounds.hpp>

#include <sluice/kernel/byte_tables.hpp>

#include "../../support.hpp"

using namespace sluice;

TEST_CASE("byte_sums_at_most: items by their sums, at every limit", "[codebook][search][kernel]") {
  const index_t M = GENERATE(1, 3, 8, 257);
  const random_source random(7);
  std::vector<std::uint8_t> codes(as_size(M * 64)), tables(as_size(M * 256));
  for (std::size_t i = 0; i < codes.size(); ++i)
    codes[i] = static_cast<std::uint8_t>(256 * random.uniform(random_site::user_site, index_t(i)));
  for (std::size_t i = 0; i < tables.size(); ++i)
    tables[i] =
        M == 257 ? 255 : static_cast<std::uint8_t>(256 * random.uniform(random_site::user_site, index_t(i) + 100000));
  std::vector<int> sums(64, 0);
  for (index_t i = 0; i < 64; ++i)
    for (index_t m = 0; m < M; ++m) sums[as_size(i)] += tables[as_size(m * 256 + codes[as_size(m * 64 + i)])];
  for (const int limit : {0, sums[0] - 1, sums[0], sums[63], 65535}) {
    if (limit < 0) continue;
    const std::uint64_t bits =
        kernel::byte_sums_at_most(codes.data(), M, tables.data(), static_cast<std::uint16_t>(limit));
    for (index_t i = 0; i < 64; ++i)
      CHECK((bits >> i & 1) == (!kernel::has_byte_tables || sums[as_size(i)] <= limit ? 1U : 0U));
  }
}

TEMPLATE_TEST_CASE("cost_bounds: nothing that is good enough is left out", "[codebook][search]", float, double) {
  using S = TestType;
  const index_t M = 6, K = GENERATE(1, 19, 256), items = 400;
  const S shift = GENERATE(S(0), S(1000), S(-3e6)), base = GENERATE(S(0), S(-7e5));
  matrix<S> table = test::random_matrix<S>(M, K, 1);
  table.array() += shift;
  std::vector<std::uint8_t> bytes(as_size(M * 256), 1);
  const auto bounds = cost_bounds<S>::of(table.data(), M, K, bytes.data());
  REQUIRE(bounds.bytes == bytes.data());
  const random_source random(7);
  index_t left_out = 0;
  std::vector<S> costs;
  std::vector<int> sums;
  for (index_t i = 0; i < items; ++i) {
    S cost = base;
    int sum = 0;
    for (index_t m = 0; m < M; ++m) {
      const auto k = static_cast<index_t>(random.uniform(random_site::user_site, i * M + m) * static_cast<double>(K));
      cost += table(m, k);
      sum += bytes[as_size(m * 256 + k)];
    }
    costs.push_back(cost);
    sums.push_back(sum);
  }
  for (const S limit : costs)
    for (std::size_t i = 0; i < costs.size(); ++i) {
      const bool kept = sums[i] <= bounds.most(limit, base);
      if (costs[i] <= limit) CHECK(kept);
      left_out += kept ? 0 : 1;
    }
  if (K > 1 && shift == S(0) && base == S(0)) CHECK(left_out > items * items / 3);
  table(2, 0) = quiet_nan<S>();
  CHECK(cost_bounds<S>::of(table.data(), M, K, bytes.data()).bytes == nullptr);
  table(2, 0) = std::numeric_limits<S>::infinity();
  CHECK(cost_bounds<S>::of(table.data(), M, K, bytes.data()).bytes == nullptr);
}
