#include <sluice/convert/dealt_heads.hpp>

#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

using dealt_student = self_attention<double, attention_order::bidirectional>;

dealt_student student_of_heads(index_t heads, index_t key_heads = 0) {
  dealt_student dense(6, {.heads = heads, .key_heads = key_heads, .head_width = 3, .bias = true, .output_bias = true});
  initialize(dense, 3);
  for (auto* bias : {&dense.query_bias(), &dense.key_bias(), &dense.value_bias(), &dense.output_bias()})
    bias->fill([](index_t i) { return 0.1 * double(i % 5) - 0.2; });
  return dense;
}
head_router<top_k_router<double>> one_of_experts(index_t experts) {
  return head_router{top_k_router<double>{6, experts, {.top_k = 1, .weights = weighting::pre}}};
}

}  // namespace

TEST_CASE("dealt_heads: one expert of all heads is the attention - whatever their order", "[convert][dealt]") {
  dealt_student dense = student_of_heads(4);
  const std::vector<index_t> order{2, 0, 3, 1};
  auto mixture = dealt_heads(dense, one_of_experts(1), {.experts = 1, .units = 4}, order);
  initialize(mixture.routing(), 1);
  const matrix<double> x = test::random_matrix<double>(9, 6, 4);
  matrix<double> y(9, 6), expected(9, 6);
  decltype(mixture)::workspace ws;
  dealt_student::workspace dense_ws;
  mixture.forward(x, y, ws);
  dense.forward(x, expected, dense_ws);  // the only expert has probability 1
  CHECK(test::largest_difference(y, expected) < test::bound<double>(30, 4));
}

TEST_CASE("dealt_heads: shared heads first and then every E-th", "[convert][dealt]") {
  dealt_student dense = student_of_heads(5);
  auto mixture = dealt_heads(dense, one_of_experts(2), {.experts = 2, .units = 3, .shared = 1});
  CHECK(mixture.attention_shape().heads == 3);
  const index_t kept[2][3] = {{0, 1, 3}, {0, 2, 4}};
  for (index_t e = 0; e < 2; ++e)
    for (index_t h = 0; h < 3; ++h) {
      const index_t from = kept[e][h];
      CHECK(test::same_bits(matrix<double>(mixture.value().expert(e).weight().to_matrix().middleRows(3 * h, 3)),
                            matrix<double>(dense.value().to_matrix().middleRows(3 * from, 3))));
      CHECK(test::same_bits(matrix<double>(mixture.output().expert(e).weight().to_matrix().middleCols(3 * h, 3)),
                            matrix<double>(dense.output().to_matrix().middleCols(3 * from, 3))));
      CHECK(mixture.key().expert(e).bias().element_at(3 * h + 1) == dense.key_bias().element_at(3 * from + 1));
    }
  CHECK(mixture.output().expert(1).bias().element_at(4) == dense.output_bias().element_at(4));
}

TEST_CASE("dealt_heads: what cannot be dealt is refused", "[convert][dealt]") {
  CHECK_THROWS_WITH(dealt_heads(student_of_heads(4, 2), one_of_experts(2), {.experts = 2, .units = 2}),
                    test::contains("4 heads have 2 of keys"));
  CHECK_THROWS_WITH(dealt_heads(student_of_heads(4), one_of_experts(3), {.experts = 2, .units = 2}),
                    test::contains("a router of 3 experts"));
  CHECK_THROWS_WITH(dealt_heads(student_of_heads(3), one_of_experts(2), {.experts = 2, .units = 2}),
                    test::contains("expert 1 would have 1 heads, expert 0 has 2"));
  const std::vector<index_t> order{0, 0, 1};
  CHECK_THROWS_WITH(dealt_heads(student_of_heads(3), one_of_experts(1), {.experts = 1, .units = 2}, order),
                    test::contains("none of all 3"));
}
