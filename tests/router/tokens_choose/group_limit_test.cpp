#include <sluice/router/tokens_choose/group_limit.hpp>

#include "router/token_choice_support.hpp"

using namespace sluice;

namespace {

/// The definition: mask, then sort.
std::vector<index_t> naive_group_choice(const group_limit& limit, const std::vector<double>& scores, index_t k) {
  const auto E = index_t(scores.size());
  const index_t size = E / limit.groups;
  std::vector<double> group_scores;
  for (index_t g = 0; g < limit.groups; ++g) {
    const auto order = test::sorted_positions(&scores[std::size_t(g * size)], size);
    double score = scores[std::size_t(g * size + order[0])];
    if (limit.score == group_limit::group_score::sum_of_two) score += scores[std::size_t(g * size + order[1])];
    group_scores.push_back(score);
  }
  const auto groups = test::sorted_positions(group_scores.data(), limit.groups);
  const double mask = limit.others == group_limit::unkept::score_of_zero ? 0 : -std::numeric_limits<double>::infinity();
  std::vector<double> masked(scores.size(), mask);
  for (index_t i = 0; i < limit.kept; ++i)
    for (index_t e = groups[std::size_t(i)] * size; e < (groups[std::size_t(i)] + 1) * size; ++e)
      masked[std::size_t(e)] = scores[std::size_t(e)];
  auto order = test::sorted_positions(masked.data(), E);
  order.resize(std::size_t(k));
  return order;
}

std::vector<index_t> choice(const group_limit& limit, const std::vector<double>& scores, index_t k) {
  std::vector<index_t> ids(std::size_t(k), -7);
  std::vector<double> scratch(scores.size());
  limit.top_k(scores.data(), scratch.data(), index_t(scores.size()), k, ids.data());
  return ids;
}

}  // namespace

TEST_CASE("group_limit: equals masking and sorting", "[router][group_limit]") {
  using group_score = group_limit::group_score;
  struct shape {
    index_t E, groups, kept, k;
  };
  const auto s = GENERATE(shape{8, 4, 2, 3}, shape{8, 4, 4, 8}, shape{6, 2, 1, 3}, shape{6, 6, 3, 3},
                          shape{256, 8, 4, 8}, shape{512, 16, 1, 32}, shape{5, 1, 1, 2});
  const auto score = GENERATE(group_score::best, group_score::sum_of_two);
  const auto others = GENERATE(group_limit::unkept::excluded, group_limit::unkept::score_of_zero);
  if (score == group_score::sum_of_two && s.E == s.groups) return;
  CAPTURE(s.E, s.groups, s.kept, s.k, int(score), int(others));
  const group_limit limit{s.groups, s.kept, score, others};
  limit.validate(s.E, s.k);
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    std::vector<double> scores(std::size_t(s.E));
    const random_source random(seed);
    for (index_t e = 0; e < s.E; ++e)  // multiples of 1/4: full of ties and of both signs
      scores[std::size_t(e)] = std::round(4 * random.normal(random_site::user_site, e)) / 4;
    CHECK(choice(limit, scores, s.k) == naive_group_choice(limit, scores, s.k));
    for (index_t g = 0; g < s.groups; ++g) {
      const auto all = choice(limit, scores, s.kept * (s.E / s.groups));
      const bool kept = std::find(all.begin(), all.end(), g * (s.E / s.groups)) != all.end();
      if (others == group_limit::unkept::excluded) CHECK(limit.keeps(scores.data(), s.E, g) == kept);
    }
  }
}

TEST_CASE("group_limit: negative scores of kept groups are chosen before anything that is not kept",
          "[router][group_limit]") {
  const group_limit limit{.groups = 2, .kept = 1, .score = group_limit::group_score::sum_of_two};
  CHECK(choice(limit, {-0.1, -0.2, -0.3, -0.4}, 2) == std::vector<index_t>{0, 1});
  // The best pair is the second group's, although the best single expert is the first's.
  CHECK(choice(limit, {-0.1, -0.9, -0.3, -0.4}, 2) == std::vector<index_t>{2, 3});
}

TEST_CASE("group_limit: as in published code, a score of zero stands for what is not kept", "[router][group_limit]") {
  const group_limit limit{.groups = 2, .kept = 1, .others = group_limit::unkept::score_of_zero};
  CHECK(choice(limit, {0.5, -0.2, 0.3, 0.4}, 2) == std::vector<index_t>{0, 2});  // 2 and 3 count 0, above -0.2
  CHECK(choice(limit, {0.5, 0.2, 0.3, 0.4}, 2) == std::vector<index_t>{0, 1});
  CHECK(choice(limit, {-0.5, -0.2, -0.3, -0.4}, 2) == std::vector<index_t>{2, 3});  // zeros beat every kept one
}

TEST_CASE("group_limit: experts outside the kept groups are not chosen even for scores of minus infinity",
          "[router][group_limit]") {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> scores{-infinity, quiet_nan<double>(), -infinity, 1};
  const group_limit limit{.groups = 2, .kept = 1};
  CHECK(choice(limit, scores, 2) == std::vector<index_t>{3, 2});
}

TEST_CASE("group_limit: evenly means that every kept group gives its own best", "[router][group_limit]") {
  const std::vector<double> scores{0.1, 0.9, 0.9, 0.2, 0.8, 0.7, 0.3, 0.1, 0.2};
  CHECK(choice({.groups = 3, .kept = 3, .evenly = true}, scores, 6) == std::vector<index_t>{1, 2, 4, 5, 6, 8});
  CHECK(choice({.groups = 3, .kept = 2, .evenly = true}, scores, 2) == std::vector<index_t>{1, 4});
  CHECK(choice({.groups = 3, .kept = 3, .evenly = true}, {0.1, 0.2, 0.3}, 3) == std::vector<index_t>{0, 1, 2});
  CHECK_THROWS_WITH((group_limit{.groups = 3, .kept = 3, .evenly = true}.validate(9, 4)),
                    test::contains("k = 4 experts cannot come evenly from 3 groups"));
}

TEST_CASE("group_limit: refuses what cannot be, with the numbers", "[router][group_limit]") {
  const auto message = [](const char* part) { return test::contains(part); };
  CHECK_THROWS_WITH((group_limit{.groups = 3, .kept = 1}.validate(8, 2)), message("E = 8") && message("groups = 3"));
  CHECK_THROWS_WITH((group_limit{.groups = 4, .kept = 5}.validate(8, 2)), message("kept = 5"));
  CHECK_THROWS_WITH((group_limit{.groups = 4, .kept = 0}.validate(8, 2)), message("kept = 0"));
  CHECK_THROWS_WITH((group_limit{.groups = 0, .kept = 0}.validate(8, 2)), message("groups = 0"));
  CHECK_THROWS_WITH((group_limit{.groups = 4, .kept = 1}.validate(8, 3)), message("k = 3") && message("groups of 2"));
  CHECK_THROWS_WITH((group_limit{8, 4, group_limit::group_score::sum_of_two}.validate(8, 2)), message("1 expert"));
}
