#include <sluice/expert/nested_bank.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../io/messages.hpp"
#include "../layer/layer_promises.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

/// y and dx of a bank on these rows, its gradients added up in its parameters.
template <typename Bank>
std::pair<matrix<double>, matrix<double>> nested_step(Bank& bank, const matrix<double>& x, const matrix<double>& dy,
                                                      const expert_rows& rows, executor_ref executor = {}) {
  typename Bank::tape tape;
  matrix<double> y = matrix<double>::Constant(x.rows(), x.cols(), quiet_nan<double>()), dx = y;
  ensure_gradients(bank);
  bank.forward(x, rows, y, tape, executor);
  bank.backward(x, rows, dy, dx, tape, executor);
  return {y, dx};
}

}  // namespace

TEST_CASE("nested_bank: an expert is the network on its first channels", "[expert][nested_bank]") {
  nested_bank<double> bank(3, 8, 5, {.bias = true});
  initialize(bank, 3);
  bank.up_bias().fill([](index_t i) { return 0.1 * double(i); });
  bank.down_bias().fill([](index_t i) { return 1 - 0.2 * double(i); });
  const std::vector<index_t> offsets{0, 3, 3, 7};  // expert 0: rows 0 to 2, expert 2: rows 3 to 6
  const matrix<double> x = test::random_matrix<double>(7, 8, 4), dy = test::random_matrix<double>(7, 8, 5);
  const auto [y, dx] = nested_step(bank, x, dy, offsets);
  const double bound = test::bound<double>(8 + 5, 16.0);
  matrix<double> dup = matrix<double>::Zero(5, 8), ddown = matrix<double>::Zero(8, 5);
  for (const index_t e : {0, 2}) {
    const index_t d = bank.width(e), begin = offsets[std::size_t(e)], n = offsets[std::size_t(e) + 1] - begin;
    CHECK(d == 2 << e);
    ffn<double, gelu> alone(d, 5, {.bias = true});
    alone.up().assign(bank.up().map().leftCols(d));
    alone.down().assign(bank.down().map().topRows(d));
    for (index_t i = 0; i < 5; ++i) alone.up_bias().data()[i] = bank.up_bias().data()[i];
    for (index_t i = 0; i < d; ++i) alone.down_bias().data()[i] = bank.down_bias().data()[i];
    expert_bank<ffn<double, gelu>> one(1, alone);
    const std::vector<index_t> own{0, n};
    const matrix<double> part = x.block(begin, 0, n, d), dpart = dy.block(begin, 0, n, d);
    const auto [expected, dexpected] = nested_step(one, part, dpart, own);
    CHECK(test::largest_difference(matrix<double>(y.block(begin, 0, n, d)), expected) <= bound);
    CHECK(test::largest_difference(matrix<double>(dx.block(begin, 0, n, d)), dexpected) <= bound);
    CHECK(y.block(begin, d, n, 8 - d).isZero(0));
    CHECK(dx.block(begin, d, n, 8 - d).isZero(0));
    dup.leftCols(d) += one.expert(0).up().gradient_matrix();
    ddown.topRows(d) += one.expert(0).down().gradient_matrix();
  }
  CHECK(test::largest_difference(matrix<double>(bank.up().gradient_map()), dup) <= 7 * bound);
  CHECK(test::largest_difference(matrix<double>(bank.down().gradient_map()), ddown) <= 7 * bound);
}

TEST_CASE("nested_bank: keeps every promise of a layer", "[expert][nested_bank][gradient]") {
  test::check_layer_promises(moe_layer{top_k_router<double>{6, 3, {.top_k = 2}},
                                       nested_bank<double, silu>{3, 6, 4, {.widths = {1, 4, 6}, .bias = true}}},
                             11);
}

TEST_CASE("nested_bank: equal bits for every thread count", "[expert][nested_bank][determinism]") {
  nested_bank<double> bank(2, 70, 41, {.bias = true});
  initialize(bank, 21);
  const std::vector<index_t> offsets{0, 40, 111};
  const matrix<double> x = test::random_matrix<double>(111, 70, 22), dy = test::random_matrix<double>(111, 70, 23);
  const auto [y, dx] = nested_step(bank, x, dy, offsets);
  const matrix<double> dup = bank.up().gradient_map(), ddown = bank.down().gradient_map();
  for (const int threads : {2, 3, 8}) {
    test::shuffled_threads pool(threads);
    zero_gradients(bank);
    const auto [z, dz] = nested_step(bank, x, dy, offsets, pool);
    CHECK(test::same_bits(z, y));
    CHECK(test::same_bits(dz, dx));
    CHECK(test::same_bits(matrix<double>(bank.up().gradient_map()), dup));
    CHECK(test::same_bits(matrix<double>(bank.down().gradient_map()), ddown));
  }
}

TEST_CASE("nested_bank: no rows, one expert, and NaN where an expert does not look", "[expert][nested_bank]") {
  nested_bank<double> bank(2, 4, 3);
  initialize(bank, 31);
  const std::vector<index_t> nobody{0, 0, 0}, first{0, 1, 1};
  nested_step(bank, matrix<double>(0, 4), matrix<double>(0, 4), nobody);
  CHECK(bank.up().gradient_map().isZero(0));
  matrix<double> x = test::random_matrix<double>(1, 4, 32);
  x(0, 3) = quiet_nan<double>();
  CHECK(nested_step(bank, x, matrix<double>::Ones(1, 4), first).first.allFinite());
  CHECK(nested_bank<double>(1, 4, 3).width(0) == 4);
}

TEST_CASE("nested_bank: refuses what makes no sense", "[expert][nested_bank]") {
  CHECK_THROWS_WITH(nested_bank<double>(3, 6, 2), test::contains("D = 6") && test::contains("2 times"));
  CHECK_THROWS_WITH(nested_bank<double>(2, 6, 2, {.widths = {1}}), test::contains("1 widths for E = 2"));
  CHECK_THROWS_WITH(nested_bank<double>(2, 6, 2, {.widths = {1, 7}}), test::contains("width 7 of D = 6"));
  CHECK_THROWS_WITH(nested_bank<double>(2, 6, 0), test::contains("0"));
}
