#include <sluice/convert/merged_experts.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

expert_matrices<double> expert_to_merge(std::uint64_t seed) {
  return {test::random_matrix<double>(7, 4, seed), test::random_matrix<double>(5, 7, seed + 1)};
}

matrix<double> output_of_merged(const expert_matrices<double>& e, const matrix<double>& x) {
  return (x * e.first.transpose()).cwiseMax(0.0) * e.last.transpose();
}

}  // namespace

TEST_CASE("merged_experts: units that were shuffled are found again, and nothing is computed otherwise",
          "[convert][merged]") {
  const expert_matrices<double> e = expert_to_merge(1);
  const std::vector<index_t> shuffle{3, 0, 6, 2, 5, 1, 4};
  const expert_matrices<double> shuffled = reordered_units<double>(e, shuffle);
  const matrix<double> x = test::random_matrix<double>(6, 4, 3);
  CHECK(test::largest_difference(output_of_merged(shuffled, x), output_of_merged(e, x)) < 1e-12);
  const auto pi = aligned_units(e, shuffled);
  for (std::size_t j = 0; j < 7; ++j) CHECK(shuffle[as_size(pi[j])] == static_cast<index_t>(j));
  CHECK(reordered_units<double>(shuffled, pi).first == e.first);

  // Two copies, one shuffled, merged by any usage, are the expert.
  const std::vector<expert_matrices<double>> copies{e, shuffled};
  const auto merged = merge_groups<double>(copies, std::vector<index_t>{0, 0}, std::vector<double>{0.3, 0.1});
  CHECK(merged.slot == std::vector<index_t>{0, 0});
  CHECK(test::largest_difference(output_of_merged(merged.experts[1], x), output_of_merged(e, x)) < 1e-5);
  const auto apart = merge_groups<double>(copies, std::vector<index_t>{0, 0}, std::vector<double>{0.3, 0.1}, false);
  CHECK(test::largest_difference(output_of_merged(apart.experts[1], x), output_of_merged(e, x)) > 0.1);
}

TEST_CASE("merged_experts: alignment is the best there is", "[convert][merged]") {
  const expert_matrices<double> a{test::random_matrix<double>(5, 3, 11), test::random_matrix<double>(3, 5, 12)},
      b{test::random_matrix<double>(5, 3, 13), test::random_matrix<double>(3, 5, 14)};
  const matrix<double> likeness = a.first * b.first.transpose() + a.last.transpose() * b.last;
  const auto value = [&](const std::vector<index_t>& pi) {
    double sum = 0;
    for (index_t j = 0; j < 5; ++j) sum += likeness(j, pi[as_size(j)]);
    return sum;
  };
  std::vector<index_t> all{0, 1, 2, 3, 4};
  double most = value(all);
  while (std::next_permutation(all.begin(), all.end())) most = std::max(most, value(all));
  CHECK(std::abs(value(aligned_units(a, b)) - most) < 1e-12);
}

TEST_CASE("merged_experts: groups by hand", "[convert][merged]") {
  // Counted as used: {1, .2, .1}, {1, .3, .2}; sorted 1, 1, .3, .2, .2, .1: entry 4 is .2, above it 1 and 2.
  matrix<double> usage(2, 3);
  usage << 0.7, 0.2, 0.1, 0.5, 0.3, 0.2;
  CHECK(group_counts(usage, 2) == std::vector<index_t>{1, 2});
  CHECK(group_counts(usage, 3) == std::vector<index_t>{3, 3});
  CHECK(group_counts(usage, 1) == std::vector<index_t>{1, 1});
  matrix<double> logits(2, 4);
  logits << 1, 1, 0, -1, 0, 1, 1, 0;
  const matrix<double> similar = logit_similarity<double>(logits);
  CHECK(std::abs(similar(0, 1) - (1 + std::sqrt(0.5)) / 2) < 1e-15);
  CHECK(similar(0, 2) == 0.5);
  CHECK(similar(0, 3) == 0);
  CHECK(expert_groups(std::vector<double>{0.4, 0.1, 0.3, 0.2}, similar, 2) == std::vector<index_t>{0, 0, 1, 1});
  CHECK(logit_similarity<double>(matrix<double>::Zero(3, 2))(0, 1) == 0.5);
}

TEST_CASE("merged_experts: a group of one is left alone, experts that nobody used count alike, what it needs",
          "[convert][merged]") {
  const std::vector<expert_matrices<double>> experts{expert_to_merge(21), expert_to_merge(23), expert_to_merge(25)};
  const auto merged =
      merge_groups<double>(experts, std::vector<index_t>{1, 0, 0}, std::vector<double>{0.5, 0, 0}, false);
  CHECK(merged.experts[0].first == experts[0].first);
  CHECK(test::largest_difference(merged.experts[2].first, matrix<double>((experts[1].first + experts[2].first) / 2)) <
        1e-15);
  CHECK(merged.slot == std::vector<index_t>{0, 1, 1});
  CHECK_THROWS_AS(merge_groups<double>(experts, std::vector<index_t>{0, 0}, std::vector<double>{1, 1, 1}),
                  std::invalid_argument);
  CHECK_THROWS_AS(group_counts(matrix<double>::Constant(2, 3, -1), 2), std::invalid_argument);
  CHECK_THROWS_AS(group_counts(matrix<double>::Zero(2, 3), 4), std::invalid_argument);
  CHECK_THROWS_AS(expert_groups(std::vector<double>{1, 1}, matrix<double>::Zero(3, 3), 1), std::invalid_argument);
  expert_matrices<double> broken = experts[0];
  broken.first(1, 1) = quiet_nan<double>();
  CHECK_THROWS_AS(aligned_units(experts[0], broken), std::invalid_argument);
}
