#include <sluice/codebook/codes/moving_average.hpp>

#include <sluice/codebook/vector_quantizer.hpp>

#include "../../layer/plain_checks.hpp"

using namespace sluice;

namespace {

matrix<double> average_batch() {
  return test::random_matrix<double>(50, 3, 1);
}

auto average_quantizer(moving_average_options options) {
  vector_quantizer q{moving_average_codes<double>{4, 3, options}};
  q.codebook().table().assign(test::random_matrix<double>(4, 3, 2));
  return q;
}

}  // namespace

TEST_CASE("moving_average_codes: one step by hand", "[codebook]") {
  auto q = average_quantizer({.decay = 0.9, .epsilon = 1e-3});
  const matrix<double> x = average_batch(), before = q.codebook().table().to_matrix();
  matrix<double> y(50, 3);
  decltype(q)::tape tape;
  q.forward(x, y, tape);
  q.after_step(tape);
  Eigen::VectorXd sizes = Eigen::VectorXd::Constant(4, 0.9);
  matrix<double> sums = 0.9 * before;
  for (index_t t = 0; t < 50; ++t) {
    sizes[tape.ids(t, 0)] += 0.1;
    sums.row(tape.ids(t, 0)) += 0.1 * x.row(t);
  }
  const double total = sizes.sum();
  for (index_t c = 0; c < 4; ++c) {
    CHECK(q.codebook().sizes().value()[as_size(c)] == Approx(sizes[c]));
    const double smoothed = (sizes[c] + 1e-3) / (total + 4 * 1e-3) * total;
    for (index_t d = 0; d < 3; ++d) CHECK(q.codebook().table().to_matrix()(c, d) == Approx(sums(c, d) / smoothed));
  }
  CHECK(tape.loss() == Approx(0.25 * (x - y).array().square().mean()));  // no codebook term
}

TEST_CASE("moving_average_codes: without memory a step is one of Lloyd's", "[codebook]") {
  auto q = average_quantizer({.decay = 0, .epsilon = 1e-12});
  const matrix<double> x = average_batch();
  matrix<double> y(50, 3);
  decltype(q)::tape tape;
  q.forward(x, y, tape);
  q.after_step(tape);
  for (index_t c = 0; c < 4; ++c) {
    Eigen::RowVectorXd mean = Eigen::RowVectorXd::Zero(3);
    for (index_t t = 0; t < 50; ++t)
      if (tape.ids(t, 0) == c) mean += x.row(t);
    mean /= static_cast<double>(tape.usage.count(c));
    CHECK(test::largest_difference(q.codebook().table().to_matrix().row(c), mean) < 1e-10);
  }
}

TEST_CASE("moving_average_codes: one code is the mean, and unit length is kept", "[codebook]") {
  vector_quantizer one{moving_average_codes<double>{1, 3, {.decay = 0, .epsilon = 1e-12}}};
  one.codebook().table().assign(matrix<double>::Ones(1, 3));
  const matrix<double> x = average_batch();
  matrix<double> y(50, 3);
  decltype(one)::tape tape;
  one.forward(x, y, tape);
  one.after_step(tape);
  CHECK(test::largest_difference(one.codebook().table().to_matrix().row(0), x.colwise().mean()) < 1e-12);

  auto unit = average_quantizer({.unit_length = true});
  decltype(unit)::tape unit_tape;
  unit.forward(x, y, unit_tape);
  unit.after_step(unit_tape);
  for (index_t c = 0; c < 4; ++c) CHECK(unit.codebook().table().to_matrix().row(c).norm() == Approx(1));
}

TEST_CASE("moving_average_codes: two halves of a batch, added up, are the batch", "[codebook]") {
  auto whole = average_quantizer({}), parts = whole;
  const matrix<double> x = average_batch();
  matrix<double> y(50, 3);
  decltype(whole)::tape tape;
  whole.forward(x, y, tape);
  whole.after_step(tape);
  code_sums<double> first, second;
  const matrix<double> upper = x.topRows(20), lower = x.bottomRows(30);
  sum_by_code<double>(const_matrix_map<double>(upper.data(), 20, 3), tape.ids.data(), 4, first, {});
  sum_by_code<double>(const_matrix_map<double>(lower.data(), 30, 3), tape.ids.data() + 20, 4, second, {});
  for (index_t c = 0; c < 4; ++c) first.counts[c] += second.counts[c];
  first.sums.map() += second.sums.map();
  parts.codebook().update(first);
  CHECK(test::largest_difference(parts.codebook().table().to_matrix(), whole.codebook().table().to_matrix()) < 1e-14);
}

TEST_CASE("moving_average_codes: a batch that holds nothing changes nothing", "[codebook]") {
  auto q = average_quantizer({});
  const matrix<double> before = q.codebook().table().to_matrix(), none(0, 3);
  matrix<double> y(0, 3);
  decltype(q)::tape tape;
  q.forward(none, y, tape);
  q.after_step(tape);
  CHECK(test::same_bits(q.codebook().table().to_matrix(), before));
  CHECK_THROWS_AS(moving_average_codes<double>(4, 3, {.decay = 1}), std::invalid_argument);
  CHECK_THROWS_AS(moving_average_codes<double>(4, 3, {.epsilon = 0}), std::invalid_argument);
}
