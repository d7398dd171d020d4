#include <sluice/expert/factorized/matrix_product.hpp>

#include <sluice/expert/factorized/core_sweep.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "io/messages.hpp"
#include "layer/layer_promises.hpp"
#include "layer/saved_layer.hpp"

using namespace sluice;

namespace {

using chain_factors = std::vector<index_t>;

/// H = 12, D = 8, bonds that are not full, the centre third of four.
template <typename Scalar>
matrix_product_weights<Scalar> small_products() {
  return {3, {2, 1, 3, 2}, {2, 2, 1, 2}, {.bonds = {1, 3, 4, 2, 1}, .centre = 2}};
}

/// One expert's matrix, number by number from the definition.
matrix<double> chain_matrix(const core_chain<double>& chain, index_t e) {
  matrix<double> w(chain.rows(), chain.columns());
  for (index_t i = 0; i < w.rows(); ++i)
    for (index_t j = 0; j < w.cols(); ++j) {
      matrix<double> product = matrix<double>::Ones(1, 1);
      index_t rows = w.rows(), columns = w.cols(), r = i, c = j;
      for (std::size_t k = 0; k < chain.cores(); ++k) {
        const index_t R = chain.row_factors()[k], C = chain.column_factors()[k], from = chain.bonds()[k],
                      to = chain.bonds()[k + 1];
        rows /= R, columns /= C;
        const index_t digit = r / rows * C + c / columns;
        r %= rows, c %= columns;
        matrix<double> step(from, to);
        for (index_t a = 0; a < from; ++a)
          for (index_t b = 0; b < to; ++b) step(a, b) = chain.core_of(k, e)[(a * R * C + digit) * to + b];
        product = (product * step).eval();
      }
      w(i, j) = product(0, 0);
    }
  return w;
}

}  // namespace

TEST_CASE("matrix_product_bank: an expert is the network of its chains", "[expert][factorized][matrix_product]") {
  computed_bank<matrix_product_weights<double>, gelu> bank{small_products<double>()};
  initialize(bank, 3);
  bank.weights().up_bias().fill([](index_t i) { return 0.1 * double(i); });
  bank.weights().down_bias().fill([](index_t i) { return 1 - 0.2 * double(i); });
  CHECK((bank.experts() == 3 && bank.inputs() == 8 && bank.hidden() == 12 && bank.outputs() == 8));
  const auto written = bank.written_out();
  for (index_t e = 0; e < 3; ++e) {
    const matrix<double> up = chain_matrix(bank.weights().up(), e), down = chain_matrix(bank.weights().down(), e);
    CHECK(test::largest_difference(written.expert(e).first_map(0).weight().to_matrix(), up) <=
          test::bound<double>(24, 4.0));
    CHECK(test::largest_difference(written.expert(e).last_map().weight().to_matrix(), down) <=
          test::bound<double>(24, 4.0));
  }
  // Experts with rows are the dense ones bit for bit, and so is the whole layer.
  const top_k_router<double> router = [] {
    top_k_router<double> r{8, 3, {.top_k = 2}};
    initialize(r, 4);
    return r;
  }();
  const matrix<double> x = test::random_matrix<double>(11, 8, 5);
  matrix<double> y(11, 8), dense(11, 8);
  const moe_layer layer{router, bank};
  const moe_layer dense_layer{router, written};
  decltype(layer)::workspace workspace;
  decltype(dense_layer)::workspace dense_workspace;
  layer.forward(x, y, workspace);
  dense_layer.forward(x, dense, dense_workspace);
  CHECK(test::same_bits(y, dense));
  const auto small = layer.stored_as<bfloat16_storage>();
  CHECK(test::largest_difference(
            matrix<double>(small.bank().expert(1).first_map(0).weight().to_matrix().template cast<double>()),
            written.expert(1).first_map(0).weight().to_matrix()) <= 0x1p-8 * 4);
}

TEST_CASE("matrix_product_bank: every promise of a layer", "[expert][factorized][matrix_product][conformance]") {
  moe_layer layer{top_k_router<double>{8, 3, {.top_k = 2}},
                  computed_bank<matrix_product_weights<double>, silu>{small_products<double>()}};
  test::check_layer_promises(layer, 11);
  initialize(layer, 12);
  CHECK(test::file_keeps(layer, 13));
}

TEST_CASE("matrix_product_bank: the shared centre gathers all experts' gradients in order", "[expert][factorized]") {
  // All experts alike: what one sees with all rows is what the three see together.
  auto weights = small_products<double>();
  initialize(weights, 21);
  for (auto* chain : {&weights.up(), &weights.down()})
    for (std::size_t k = 0; k < chain->cores(); ++k)
      for (index_t e = 0; e < (k == chain->centre() ? 0 : 3); ++e)
        std::copy_n(chain->core_of(k, 0), chain->core(k).size() / 3, chain->core_of(k, e));
  computed_bank<matrix_product_weights<double>, gelu> bank{weights};
  const auto written = bank.written_out();
  CHECK(test::same_bits(written.expert(0).first_map(0).weight().to_matrix(),
                        written.expert(2).first_map(0).weight().to_matrix()));

  const matrix<double> x = test::random_matrix<double>(9, 8, 22), dy = test::random_matrix<double>(9, 8, 23);
  const auto centre_gradient = [&](const std::vector<index_t>& offsets, const executor_ref& executor = {}) {
    zero_gradients(bank);
    ensure_gradients(bank);
    decltype(bank)::tape tape;
    bank.prepare(tape, 9, true);
    matrix<double> y(9, 8), dx(9, 8);
    bank.forward(x, offsets, y, tape, executor);
    bank.backward(x, offsets, dy, dx, tape, executor);
    return matrix<double>(bank.weights().up().core(2).gradient_map());
  };
  const matrix<double> apart = centre_gradient({0, 4, 4, 9}), together = centre_gradient({0, 9, 9, 9});
  CHECK(apart.cwiseAbs().maxCoeff() > 0.01);
  CHECK(test::largest_difference(apart, together) <= test::bound<double>(9 * 12, 4.0));
  for (const int threads : {2, 3, 8}) {
    test::shuffled_threads pool(threads);
    CHECK(test::same_bits(centre_gradient({0, 4, 4, 9}, pool), apart));
  }
  // The second expert has no rows and no gradient of its own.
  static_cast<void>(centre_gradient({0, 4, 4, 9}));
  const auto& first = bank.weights().down().core(0);
  const index_t own = first.size() / 3;
  for (index_t i = own; i < 2 * own; ++i) CHECK(first.gradient()[as_size(i)] == 0);
  bank.weights().up().core(2).set_frozen(true);
  CHECK(centre_gradient({0, 4, 4, 9}).isZero(0));
}

TEST_CASE("matrix_product_bank: masks numbers of the centre's gradient only", "[expert][factorized]") {
  auto weights = small_products<double>();
  initialize(weights, 31);
  ensure_gradients(weights);
  for_each_parameter(weights, [](const std::string&, auto& p) { std::ranges::fill(p.gradient(), 1.0); });
  weights.mask_centre_gradients(0.5, random_source(7));
  index_t left = 0, all = 0;
  for (auto* chain : {&weights.up(), &weights.down()}) {
    for (const double g : chain->core(2).gradient()) left += g != 0, ++all;
    CHECK(std::ranges::count(chain->core(1).gradient(), 0.0) == 0);
  }
  CHECK(left > all / 4);
  CHECK(left < 3 * all / 4);
}

TEST_CASE("swept_cores: full bonds hold any matrix - fewer the best part of it", "[expert][factorized][core_sweep]") {
  const chain_factors rows{2, 3, 2}, columns{3, 1, 2};
  CHECK(full_bonds(rows, columns) == chain_factors{1, 6, 4, 1});
  CHECK(full_bonds(chain_factors{4, 4, 8, 6, 4}, chain_factors{3, 4, 4, 4, 4}) ==
        chain_factors{1, 12, 192, 384, 16, 1});
  const matrix<double> w = test::random_matrix<double>(12, 6, 41);
  core_chain<double> chain(2, rows, columns, full_bonds(rows, columns), 1);
  assign_matrix(chain, w);
  for (index_t e = 0; e < 2; ++e)
    CHECK(test::largest_difference(chain_matrix(chain, e), w) <= test::bound<double>(24, 4.0));
  // Two cores: the best approximation of rank 2 leaves the norm of the other singular values.
  const chain_factors two_rows{4, 3}, two_columns{2, 3};
  core_chain<double> thin(1, two_rows, two_columns, {1, 2, 1}, 1);
  assign_matrix(thin, w);
  matrix<double> turned(8, 9);  // rows (r1, c1), columns (r2, c2)
  for (index_t i = 0; i < 12; ++i)
    for (index_t j = 0; j < 6; ++j) turned(i / 3 * 2 + j / 3, i % 3 * 3 + j % 3) = w(i, j);
  const kernel::small_svd svd(matrix<double>(turned.transpose()));
  const double left_out = std::sqrt(svd.s.bottomRows(6).squaredNorm());
  CHECK(std::abs((chain_matrix(thin, 0) - w).norm() - left_out) <= test::bound<double>(72, 4.0));
  CHECK_THROWS_WITH(swept_cores(w, rows, columns, chain_factors{1, 1}), test::contains("[12, 6]"));
}

TEST_CASE("core_chain: refuses shapes that do not fit", "[expert][factorized]") {
  CHECK_THROWS_WITH((core_chain<double>(2, {2, 2}, {2}, {1, 2, 1}, 0)), test::contains("column factors"));
  CHECK_THROWS_WITH((core_chain<double>(2, {2, 2}, {2, 2}, {1, 2, 2}, 0)), test::contains("bond 1"));
  CHECK_THROWS_WITH((core_chain<double>(2, {2, 0}, {2, 2}, {1, 2, 1}, 0)), test::contains("not 0"));
  CHECK_THROWS_WITH((core_chain<double>(2, {2, 2}, {2, 2}, {1, 2, 1}, 2)), test::contains("centre 2"));
}
