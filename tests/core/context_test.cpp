#include <sluice/core/context.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("check_context: an empty context fits any batch", "[core][context]") {
  check_context(routing_context<float>{}, 0);
  check_context(routing_context<float>{}, 7);
  CHECK(routing_context<float>{}.group_count() == 1);
  CHECK(routing_context<float>{}.group(0, 7).end == 7);
  CHECK_FALSE(routing_context<float>{}.is_padding(3));
}

TEST_CASE("check_context: a part of the wrong length is named with both numbers", "[core][context]") {
  const std::vector<std::uint8_t> mask(3, 1);
  const std::vector<index_t> ids(3);
  const matrix<float> rows(3, 2);
  routing_context<float> c;
  SECTION("token_mask") {
    c.token_mask = mask;
    CHECK_THROWS_WITH(check_context(c, 4), "sluice: routing_context.token_mask has 3 entries for 4 tokens");
  }
  SECTION("token_ids") {
    c.token_ids = ids;
    CHECK_THROWS_WITH(check_context(c, 4), "sluice: routing_context.token_ids has 3 entries for 4 tokens");
  }
  SECTION("modality_ids") {
    c.modality_ids = ids;
    CHECK_THROWS_WITH(check_context(c, 4), "sluice: routing_context.modality_ids has 3 entries for 4 tokens");
  }
  SECTION("cluster_ids") {
    c.cluster_ids = ids;
    CHECK_THROWS_WITH(check_context(c, 4), "sluice: routing_context.cluster_ids has 3 entries for 4 tokens");
  }
  SECTION("protected_tokens") {
    c.protected_tokens = mask;
    CHECK_THROWS_WITH(check_context(c, 4), "sluice: routing_context.protected_tokens has 3 entries for 4 tokens");
  }
  SECTION("previous_logits") {
    c.previous_logits = rows;
    CHECK_THROWS_WITH(check_context(c, 4), "sluice: routing_context.previous_logits has 3 rows for 4 tokens");
  }
  SECTION("group_features") {
    c.group_features = rows;
    CHECK_THROWS_WITH(check_context(c, 3), "sluice: routing_context.group_features has 3 rows for 1 groups");
    c.group_features = {};
    const std::vector<index_t> borders{0, 1, 2, 4};
    c.groups = borders;
    c.group_features = rows;
    check_context(c, 4);
    return;
  }
  SECTION("expert_ids and expert_weights") {
    c.expert_weights = rows;
    CHECK_THROWS_WITH(check_context(c, 4), "sluice: routing_context.expert_weights has 3 rows for 4 tokens");
    const matrix<index_t> experts = matrix<index_t>::Zero(3, 2);
    c.expert_ids = experts;
    CHECK_THROWS_WITH(check_context(c, 4), "sluice: routing_context.expert_ids has 3 rows for 4 tokens");
  }
  SECTION("sequences") {
    const std::vector<index_t> borders{0, 2, 3};
    c.sequences = borders;
    CHECK_THROWS_WITH(check_context(c, 4),
                      "sluice: routing_context.sequences must ascend from 0 to the number of tokens, 4; "
                      "its 3 entries go from 0 to 3");
    const std::vector<index_t> falling{0, 3, 2, 4}, alone{0};
    c.sequences = falling;
    CHECK_THROWS_WITH(check_context(c, 4), "sluice: routing_context.sequences must ascend; entry 2 is 2 after 3");
    c.sequences = alone;
    CHECK_THROWS_WITH(check_context(c, 0),
                      "sluice: routing_context.sequences must ascend from 0 to the number of tokens, 0; "
                      "its 1 entries go from 0 to 0");
    c.sequences = borders;
    CHECK(c.sequence_borders().size() == 3);
    c.sequences = {};
  }
  SECTION("features") {
    c.features = rows;
    CHECK_THROWS_WITH(check_context(c, 4), "sluice: routing_context.features has 3 rows for 4 tokens");
  }
  check_context(c, 3);
}

TEST_CASE("check_context: groups ascend from 0 to the number of tokens", "[core][context]") {
  const auto fits = [](std::vector<index_t> borders, index_t tokens) {
    routing_context<float> c;
    c.groups = borders;
    try {
      check_context(c, tokens);
      return true;
    } catch (const std::invalid_argument&) {
      return false;
    }
  };
  CHECK(fits({0, 4}, 4));
  CHECK(fits({0, 1, 1, 4}, 4));
  CHECK(fits({0, 0}, 0));
  CHECK_FALSE(fits({0}, 4));
  CHECK_FALSE(fits({0}, 0));
  CHECK_FALSE(fits({1, 4}, 4));
  CHECK_FALSE(fits({0, 3}, 4));
  CHECK_FALSE(fits({0, 5}, 4));
  CHECK_FALSE(fits({0, 3, 2, 4}, 4));
  CHECK_FALSE(fits({0, -1, 4}, 4));
}

TEST_CASE("routing_context: masks and groups are read token by token", "[core][context]") {
  const std::vector<std::uint8_t> mask{1, 0, 1};
  const std::vector<index_t> borders{0, 2, 3};
  routing_context<double> c;
  c.token_mask = mask;
  c.groups = borders;
  CHECK_FALSE(c.is_padding(0));
  CHECK(c.is_padding(1));
  CHECK(c.group_count() == 2);
  CHECK(c.group(1, 3).begin == 2);
  CHECK(c.group(0, 3).size() == 2);
}

TEST_CASE("optional_matrix: made from matrices and maps, empty by default", "[core][context]") {
  const matrix<double> m = matrix<double>::Constant(2, 3, 4.0);
  CHECK_FALSE(optional_matrix<double>());
  const optional_matrix<double> view = m;
  CHECK(view);
  CHECK(view.rows == 2);
  CHECK(view.map() == m);
  CHECK(optional_matrix<double>(const_matrix_map<double>(m.data(), 3, 2)).cols == 2);
}

TEST_CASE("routing_context: each layer of a model gets draws of its own and everything else as it is",
          "[core][context][random]") {
  constexpr random_site site("a router's noise");
  const std::vector<std::uint8_t> mask(3, 1);
  routing_context<float> context;
  context.training = true;
  context.random = random_source(7, 2);
  context.token_mask = mask;
  context.step = 5;
  const auto first = context.for_layer(0);
  const auto second = context.for_layer(1);
  CHECK(first.random.normal(site, 4) != second.random.normal(site, 4));
  CHECK(first.random.normal(site, 4) != context.random.normal(site, 4));
  CHECK(first.random.normal(site, 4) == context.for_layer(0).random.normal(site, 4));
  CHECK(first.for_layer(1).random.normal(site, 4) != second.for_layer(0).random.normal(site, 4));
  CHECK(second.training);
  CHECK(second.token_mask.data() == mask.data());
  CHECK(second.step == 5);
}
