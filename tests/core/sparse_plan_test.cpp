#include <sluice/core/sparse_plan.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

std::vector<index_t> list(std::span<const index_t> numbers) { return {numbers.begin(), numbers.end()}; }

/// Where the assignments of every expert begin, and where the last one's end.
std::vector<index_t> borders(const sparse_plan<float>& p) {
  std::vector<index_t> all;
  for (index_t e = 0; e < p.experts(); ++e) all.push_back(p.by_expert().of(e).begin);
  all.push_back(p.by_expert().last_row());
  return all;
}

/// Token 0 -> experts 2, 0; token 1 -> nothing; token 2 -> expert 2; token 3 -> experts 1, 2. Expert 3 gets nothing.
/// Served by rank: all first choices, then all second ones.
sparse_plan<float> example() {
  sparse_plan<float> p;
  p.reset(4, 4);
  p.add(0, 2, 0.5f, 0);
  p.add(2, 2, 1.0f, 0);
  p.add(3, 1, 0.75f, 0);
  p.add(0, 0, 0.25f, 1);
  p.add(3, 2, 0.125f, 1);
  p.finish();
  return p;
}

}  // namespace

TEST_CASE("sparse_plan: the same assignments by expert and by token", "[core][plan]") {
  const sparse_plan<float> p = example();
  CHECK(p.tokens() == 4);
  CHECK(p.experts() == 4);
  CHECK(p.size() == 5);
  CHECK(p.rows() == 5);
  CHECK(borders(p) == std::vector<index_t>{0, 1, 2, 5, 5});
  CHECK(p.load(2) == 3);
  CHECK(p.load(3) == 0);
  // Expert 2 sees its tokens in the order in which they were added.
  const index_t tokens[] = {0, 3, 0, 2, 3};
  const index_t experts[] = {0, 1, 2, 2, 2};
  const index_t ranks[] = {1, 0, 0, 0, 1};
  const index_t slots[] = {0, 0, 0, 1, 2};
  const float weights[] = {0.25f, 0.75f, 0.5f, 1.0f, 0.125f};
  for (index_t i = 0; i < 5; ++i) {
    CAPTURE(i);
    CHECK(p.token(i) == tokens[i]);
    CHECK(p.expert(i) == experts[i]);
    CHECK(p.rank(i) == ranks[i]);
    CHECK(p.slot(i) == slots[i]);
    CHECK(p.weight(i) == weights[i]);
    CHECK(p.input_scale(i) == 1);
  }
  CHECK(list(p.of_token(0)) == std::vector<index_t>{2, 0});  // by rank
  CHECK(list(p.of_token(1)).empty());
  CHECK(list(p.of_token(2)) == std::vector<index_t>{3});
  CHECK(list(p.of_token(3)) == std::vector<index_t>{1, 4});
  CHECK_FALSE(p.has_input_scale());
  p.validate();
}

TEST_CASE("sparse_plan: as a dense matrix", "[core][plan]") {
  matrix<float> expected = matrix<float>::Zero(4, 4);
  expected(0, 0) = 0.25f, expected(0, 2) = 0.5f, expected(2, 2) = 1, expected(3, 1) = 0.75f, expected(3, 2) = 0.125f;
  CHECK(example().dense_weights() == expected);
}

TEST_CASE("sparse_plan: random plans agree with a list of their assignments", "[core][plan]") {
  struct assignment {
    index_t token, expert, rank;
    double weight;
  };
  const random_source random(5);
  sparse_plan<double> p;
  for (std::uint64_t round = 0; round < 30; ++round) {
    const random_source draws = random.at_step(round);
    const auto below = [&](index_t position, index_t limit) {
      return static_cast<index_t>(draws.uniform(random_site::user_site, position) * static_cast<double>(limit));
    };
    const index_t tokens = below(0, 20), experts = 1 + below(1, 9);
    std::vector<assignment> added;
    for (index_t t = 0; t < tokens; ++t) {
      const index_t k = below(100 + t, experts + 1);
      for (index_t j = 0; j < k; ++j)
        added.push_back({t, (t + j) % experts, j, draws.uniform(random_site::user_site, 1000 + t * 10 + j)});
    }
    p.reset(tokens, experts);
    for (const assignment& a : added) p.add(a.token, a.expert, a.weight, a.rank);
    p.finish();
    REQUIRE(p.size() == static_cast<index_t>(added.size()));
    p.validate();
    index_t total = 0;
    for (index_t e = 0; e < experts; ++e) total += p.load(e);
    CHECK(total == p.size());
    for (index_t t = 0, next = 0; t < tokens; ++t)
      for (const index_t i : p.of_token(t)) {
        const assignment& a = added[static_cast<std::size_t>(next++)];
        CHECK(p.token(i) == a.token);
        CHECK(p.expert(i) == a.expert);
        CHECK(p.rank(i) == a.rank);
        CHECK(p.weight(i) == a.weight);
        const row_range own = p.by_expert().of(a.expert);
        CHECK((i >= own.begin && i < own.end));
      }
    for (index_t i = 1; i < p.size(); ++i)
      if (p.expert(i) == p.expert(i - 1)) CHECK(p.token(i) > p.token(i - 1));  // slots in the order of adding
  }
}

TEST_CASE("sparse_plan: among few experts or among a million, the same plan", "[core][plan]") {
  const random_source random(8);
  sparse_plan<double> few, many;
  const auto expert_among_many = [](index_t e) { return e * 10007 + 3; };
  for (std::uint64_t round = 0; round < 40; ++round) {
    CAPTURE(round);
    const random_source draws = random.at_step(round);
    const auto below = [&](random_site site, index_t position, index_t limit) {
      return static_cast<index_t>(draws.uniform(site, position) * static_cast<double>(limit));
    };
    // Every order of adding, any load: experts drawn evenly, or most often the lowest ones.
    const index_t experts = 1 + below(random_site("experts"), 0, 100), size = below(random_site("size"), 0, 300);
    const bool is_even = round % 2 == 0;
    few.reset(20, experts);
    many.reset(20, index_t(1) << 20);
    for (index_t i = 0; i < size; ++i) {
      const index_t limit = is_even ? experts : 1 + below(random_site("limit"), i, experts);
      const index_t expert = below(random_site("expert"), i, limit);
      const index_t token = below(random_site("token"), i, 20);
      const double weight = draws.normal(random_site("weight"), i), scale = draws.normal(random_site("scale"), i);
      few.add(token, expert, weight, i, scale);
      many.add(token, expert_among_many(expert), weight, i, scale);
    }
    few.finish();
    many.finish();
    REQUIRE(many.size() == size);
    for (index_t i = 0; i < size; ++i) {
      CHECK(many.token(i) == few.token(i));
      CHECK(many.expert(i) == expert_among_many(few.expert(i)));
      CHECK(many.rank(i) == few.rank(i));
      CHECK(many.slot(i) == few.slot(i));
      CHECK(many.weight(i) == few.weight(i));
      CHECK(many.input_scale(i) == few.input_scale(i));
    }
    for (index_t t = 0; t < 20; ++t) CHECK(list(many.of_token(t)) == list(few.of_token(t)));
    for (index_t e = 0; e < experts; ++e) {
      CHECK(many.by_expert().of(expert_among_many(e)).begin == few.by_expert().of(e).begin);
      CHECK(many.load(expert_among_many(e)) == few.load(e));
      CHECK(many.load(expert_among_many(e) + 1) == 0);
    }
    auto own = few.by_expert().begin();
    for (const row_range& rows : many.by_expert()) {
      CHECK(rows.expert == expert_among_many((*own).expert));
      CHECK(rows.begin == (*own).begin);
      CHECK(rows.end == (*own).end);
      ++own;
    }
    CHECK(own == few.by_expert().end());
  }
}

TEST_CASE("sparse_plan: has rows of no experts until it is finished", "[core][plan]") {
  sparse_plan<float> p;
  CHECK(p.by_expert().experts() == 0);
  p.reset(2, 3);
  CHECK(p.by_expert().experts() == 0);
  p.add(1, 2, 1);
  p.finish();
  CHECK(p.by_expert().experts() == 3);
  p.reset(2, 3);
  CHECK(p.by_expert().experts() == 0);
  p.add(1, 3, 1);
  CHECK_THROWS_AS(p.finish(), std::invalid_argument);
  CHECK(p.by_expert().experts() == 0);
}

TEST_CASE("sparse_plan: no tokens, one expert, all tokens at one expert", "[core][plan]") {
  sparse_plan<float> p;
  p.reset(0, 3);
  p.finish();
  CHECK(p.size() == 0);
  CHECK(borders(p) == std::vector<index_t>{0, 0, 0, 0});
  p.validate();
  p.reset(6, 1);
  for (index_t t = 0; t < 6; ++t) p.add(t, 0, 1);
  p.finish();
  CHECK(p.load(0) == 6);
  CHECK(p.slot(5) == 5);
}

TEST_CASE("sparse_plan: reset forgets everything but the memory", "[core][plan]") {
  sparse_plan<float> p = example();
  p.add_dropped({1, 1, 0, 9, 0.5f});
  p.mark_invalid(2);
  p.use_input_scale();
  p.reset(2, 2);
  p.add(1, 1, 0.5f);
  p.finish();
  CHECK(p.size() == 1);
  CHECK(p.dropped().empty());
  CHECK(p.invalid_tokens().empty());
  CHECK_FALSE(p.has_input_scale());
  CHECK(list(p.of_token(0)).empty());
}

TEST_CASE("sparse_plan: dropped choices, invalid tokens and input scales are kept with it", "[core][plan]") {
  sparse_plan<float> p;
  p.reset(3, 2);
  p.add(0, 1, 0.5f, 0, 2.0f);
  p.add_dropped({1, 0, 1, 4, 0.25f});
  p.mark_invalid(2);
  p.finish();
  REQUIRE(p.dropped().size() == 1);
  CHECK(p.dropped()[0].token == 1);
  CHECK(p.dropped()[0].expert == 0);
  CHECK(p.dropped()[0].rank == 1);
  CHECK(p.dropped()[0].slot == 4);
  CHECK(p.dropped()[0].weight == 0.25f);
  CHECK(list(p.invalid_tokens()) == std::vector<index_t>{2});
  CHECK(p.input_scale(0) == 2);
}

TEST_CASE("sparse_plan: a value that can be copied and altered", "[core][plan]") {
  const sparse_plan<float> original = example();
  sparse_plan<float> copy = original;
  copy.weights()[3] = 7;
  copy.input_scales()[0] = 3;
  CHECK(copy.weight(3) == 7);
  CHECK(copy.input_scale(0) == 3);
  CHECK(copy.has_input_scale());
  CHECK(original.weight(3) == 1);
  CHECK(original.input_scale(0) == 1);
  CHECK_FALSE(original.has_input_scale());
  CHECK(std::as_const(copy).weights().size() == 5);
  sparse_plan<float> moved = std::move(copy);
  CHECK(moved.weight(3) == 7);
}

TEST_CASE("sparse_plan: ids outside T and E are refused before they reach memory", "[core][plan]") {
  sparse_plan<float> p;
  CHECK_THROWS_WITH(p.reset(-1, 3), "sluice: a plan needs T >= 0 and E >= 1, not T = -1 and E = 3");
  CHECK_THROWS_WITH(p.reset(1, 0), "sluice: a plan needs T >= 0 and E >= 1, not T = 1 and E = 0");
  struct place {
    index_t token, expert;
  };
  const auto bad = GENERATE(place{4, 0}, place{-1, 0}, place{0, 3}, place{0, -1}, place{index_t(1) << 40, 0});
  p.reset(4, 3);
  p.add(1, 1, 1);
  p.add(bad.token, bad.expert, 1);
  CHECK_THROWS_AS(p.finish(), std::invalid_argument);
  p.reset(4, 3);
  p.mark_invalid(4);
  CHECK_THROWS_WITH(p.finish(), "sluice: a plan cannot mark token 4 with T = 4");
}

TEST_CASE("sparse_plan: check finds an expert that a token has twice", "[core][plan]") {
  sparse_plan<float> p;
  p.reset(2, 3);
  p.add(0, 1, 1, 0);
  p.add(1, 2, 1, 0);
  p.add(1, 2, 1, 1);
  p.finish();
  CHECK_THROWS_WITH(p.validate(), "sluice: token 1 has expert 2 twice");
}

TEST_CASE("sparse_plan: the positive pairs of a matrix are the plan that adding them one by one makes", "[core][plan]") {
  const index_t tokens = GENERATE(0, 1, 5, 40), experts = GENERATE(1, 3, 20);
  const double share = GENERATE(0.0, 0.3, 1.0);
  const random_source random(17);
  matrix_buffer<float> numbers(tokens, experts);
  for (index_t i = 0; i < numbers.size(); ++i) {
    const auto position = static_cast<index_t>(i);
    numbers.data()[i] = static_cast<float>(share - random.uniform(random_site::user_site, position));
  }
  const auto goes = [](index_t t) { return t % 5 != 2; };
  const auto weight = [](index_t t, index_t e) { return static_cast<float>(100 * t + e); };
  sparse_plan<float> added, assigned;
  for (auto* p : {&added, &assigned}) {
    p->reset(tokens, experts);
    if (tokens > 2) p->mark_invalid(2);
  }
  for (index_t t = 0; t < tokens; ++t)
    for (index_t e = 0, rank = 0; e < experts && goes(t); ++e)
      if (numbers(t, e) > 0) added.add(t, e, weight(t, e), rank++);
  added.finish();
  assigned.assign_positive([&](index_t t) { return goes(t) ? numbers.row(t) : nullptr; }, weight);

  REQUIRE(assigned.size() == added.size());
  CHECK(assigned.most_rows() == tokens * experts);
  CHECK(borders(assigned) == borders(added));
  CHECK_FALSE(assigned.has_input_scale());
  CHECK(list(assigned.invalid_tokens()) == list(added.invalid_tokens()));
  for (index_t t = 0; t < tokens; ++t) CHECK(list(assigned.of_token(t)) == list(added.of_token(t)));
  for (index_t i = 0; i < added.size(); ++i) {
    CHECK(assigned.token(i) == added.token(i));
    CHECK(assigned.expert(i) == added.expert(i));
    CHECK(assigned.rank(i) == added.rank(i));
    CHECK(assigned.weight(i) == added.weight(i));
    CHECK(assigned.input_scale(i) == 1);
  }
  assigned.reset(tokens, experts);
  assigned.mark_invalid(tokens);
  CHECK_THROWS_AS(assigned.assign_positive([](index_t) -> const float* { return nullptr; }, weight),
                  std::invalid_argument);
}
