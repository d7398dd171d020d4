#include <sluice/convert/dealt_experts.hpp>

#include <sluice/train/initialize.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

using namespace sluice;

TEST_CASE("dealt_experts: shared units first and then every E-th", "[convert][dealt]") {
  using units = std::vector<index_t>;
  const dealing d{.experts = 3, .units = 4, .shared = 2};
  CHECK(dealt_units(12, d, 0) == units{0, 1, 2, 5});
  CHECK(dealt_units(12, d, 2) == units{0, 1, 4, 7});
  CHECK(dealt_units(8, {.experts = 4, .units = 3}, 1) == units{1, 5});  // none is left for a third
  CHECK(dealt_units(5, {.experts = 1, .units = 3}, 0) == units{0, 1, 2});
  CHECK(dealt_units(5, {.experts = 2, .units = 3, .shared = 3}, 1) == units{0, 1, 2});
  CHECK_THROWS_WITH(dealt_units(3, {.experts = 2, .units = 4}, 0), test::contains("4 of 3 units"));
  CHECK_THROWS_WITH(dealt_units(2, {.experts = 3, .units = 1}, 2), test::contains("no unit is left"));
}

TEST_CASE("dealt_experts: an expert is the network on its units - output bias and all", "[convert][dealt]") {
  ffn<double, gelu> dense(4, 6, {.outputs = 3, .bias = true});
  initialize(dense, 3);
  dense.up_bias().fill([](index_t i) { return 0.1 * double(i); });
  dense.down_bias().fill([](index_t i) { return 1 - 0.2 * double(i); });
  const std::vector<index_t> order{5, 0, 3, 1, 4, 2};
  auto bank = dealt_experts(dense, {.experts = 2, .units = 3, .shared = 1}, order);
  const matrix<double> x = test::random_matrix<double>(7, 4, 4);
  const auto output = [&](const ffn<double, gelu>& expert) {
    matrix<double> y(7, 3), saved(7, 0);
    expert.forward(x, y, saved);
    return y;
  };
  const std::vector<std::vector<index_t>> kept{{5, 0, 1}, {5, 3, 4}};
  for (index_t e = 0; e < 2; ++e) {
    ffn<double, gelu> cut = dense;  // the others' outputs are multiplied by zero
    matrix<double> down = cut.down().to_matrix();
    for (index_t u = 0; u < 6; ++u)
      if (std::ranges::count(kept[as_size(e)], u) == 0) down.col(u).setZero();
    cut.down().assign(down);
    CHECK(bank.expert(e).hidden() == 3);
    CHECK(test::largest_difference(output(bank.expert(e)), output(cut)) <= test::bound<double>(10, 4.0));
  }
  // One expert with all units is the student itself.
  auto one = dealt_experts(dense, {.experts = 1, .units = 6});
  CHECK(test::same_bits(output(one.expert(0)), output(dense)));
  const std::vector<index_t> twice{0, 0, 1, 2, 3, 4};
  CHECK_THROWS_WITH(dealt_experts(dense, {.experts = 2, .units = 3}, twice), test::contains("order of 6 units"));
}
