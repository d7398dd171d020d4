#include <sluice/codebook/structure/residual.hpp>

#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/gradient/rotation.hpp>
#include <sluice/codebook/structure/unit_rows.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "../../layer/plain_checks.hpp"
#include "../codebook_checks.hpp"

using namespace sluice;

namespace {

constexpr index_t residual_width = 5, residual_codes = 7;

template <typename Scalar>
using residual_stage = vector_quantizer<learned_codes<Scalar>, commitment_loss>;

template <typename Scalar>
residual_stage<Scalar> drawn_stage(std::uint64_t seed, commitment_loss loss = {}) {
  residual_stage<Scalar> stage{learned_codes<Scalar>{residual_codes, residual_width}, loss};
  stage.codebook().table().assign(test::random_matrix<Scalar>(residual_codes, residual_width, seed) / Scalar(seed));
  return stage;
}

template <typename Scalar>
auto drawn_stages(commitment_loss loss = {}) {
  return std::vector{drawn_stage<Scalar>(1, loss), drawn_stage<Scalar>(2, loss), drawn_stage<Scalar>(3, loss)};
}

/// Residual quantisers of one stage type under each option.
template <typename Stage>
auto every_residual_gradient(const Stage& stage) {
  std::vector<residual_quantizer<Stage>> all;
  for (const auto gradient : {residual_gradient::once, residual_gradient::each_stage, residual_gradient::through_stages})
    for (const double dropout : {0.0, 0.5}) {
      all.emplace_back(std::vector<Stage>(3, stage), residual_options{.gradient = gradient, .dropout = dropout});
      all.emplace_back(stage, 3, residual_options{.gradient = gradient, .dropout = dropout});
    }
  return all;
}

}  // namespace

static_assert(Quantizer<residual_quantizer<residual_stage<float>>>);
static_assert(Quantizer<residual_quantizer<residual_quantizer<residual_stage<float>>>>);

TEMPLATE_TEST_CASE("residual_quantizer: every stage codes what is left, prefixes decode to prefixes of the sum", "[codebook][structure]", float,
                   double) {
  using S = TestType;
  residual_quantizer rq{drawn_stages<S>()};
  const matrix<S> x = test::random_matrix<S>(20, residual_width, 4);
  matrix<index_t> ids(20, 3);
  typename decltype(rq)::workspace workspace;
  rq.encode(x, ids, workspace);
  matrix<S> left = x, sum = matrix<S>::Zero(20, residual_width), y(20, residual_width);
  for (index_t j = 0; j < 3; ++j) {
    CAPTURE(j);
    typename residual_stage<S>::workspace own;
    matrix<index_t> expected(20, 1);
    matrix<S> value(20, residual_width);
    rq.stage(j).encode(left, expected, own);
    rq.stage(j).decode(expected, value, own);
    CHECK(ids.col(j) == expected);
    left -= value;
    sum += value;
    matrix<index_t> prefix = matrix<index_t>::Constant(20, 3, no_code);
    prefix.leftCols(j + 1) = ids.leftCols(j + 1);
    rq.decode(prefix, y, workspace);
    CHECK(test::same_bits(y, sum));
    rq.use_stages(j + 1);
    expected.resize(20, 3);
    rq.encode(x, expected, workspace);
    CHECK(expected == prefix);
    rq.forward(x, y, workspace);
    CHECK(test::same_bits(y, sum));
    typename decltype(rq)::tape tape;
    rq.forward(x, y, tape);
    CHECK(test::same_bits(y, sum));
    CHECK(tape.ids.map() == prefix);
  }
}

TEST_CASE("residual_quantizer: one stage is that stage", "[codebook][structure]") {
  residual_quantizer rq{std::vector{drawn_stage<double>(1)}};
  auto stage = drawn_stage<double>(1);
  const matrix<double> x = test::random_matrix<double>(9, residual_width, 4), dy = test::random_matrix<double>(9, residual_width, 5);
  const auto a = test::train_once(rq, x, dy), b = test::train_once(stage, x, dy);
  CHECK(test::same_bits(a.y, b.y));
  CHECK(test::largest_difference(a.dx, b.dx) < 1e-15);
  CHECK(test::same_bits(a.gradients[0], b.gradients[0]));
}

TEST_CASE("residual_quantizer: three ways for a gradient, as differences of their surrogates", "[codebook][structure][gradient]") {
  // Stages that normalise tell all three apart. y_j = z_j + sg[q_j - z_j] with z_j = r_j / |r_j|, and a loss |z_j - sg[q_j]|^2.
  constexpr index_t T = 6;
  const commitment_loss loss{.encoder = 0.7, .codebook = 0};
  std::vector<unit_rows<residual_stage<double>>> stages;
  for (const auto& stage : drawn_stages<double>(loss)) stages.emplace_back(stage);
  const matrix<double> x = test::random_matrix<double>(T, residual_width, 4), dy = test::random_matrix<double>(T, residual_width, 5);
  for (const auto way : {residual_gradient::once, residual_gradient::each_stage, residual_gradient::through_stages}) {
    CAPTURE(static_cast<int>(way));
    residual_quantizer rq{stages, {.gradient = way}};
    const auto r = test::train_once(rq, x, dy);
    decltype(rq)::tape tape;
    matrix<double> y(T, residual_width);
    rq.forward(x, y, tape);
    std::vector<matrix<double>> codes;
    for (index_t j = 0; j < 3; ++j) {
      codes.emplace_back(T, residual_width);
      for (index_t t = 0; t < T; ++t) codes.back().row(t) = stages[as_size(j)].quantizer().codebook().table().to_matrix().row(tape.ids(t, j));
    }
    const auto surrogate = [&](const matrix<double>& at) {
      double sum = 0;
      for (index_t t = 0; t < T; ++t) {
        Eigen::RowVectorXd left = at.row(t), left_then = x.row(t), out = Eigen::RowVectorXd::Zero(residual_width);
        for (const auto& code : codes) {
          const Eigen::RowVectorXd q = code.row(t), value = left.normalized() + q - left_then.normalized();
          sum += 0.7 * (left.normalized() - q).squaredNorm() / (T * residual_width);
          out += value;
          left -= way == residual_gradient::through_stages ? value : q;
          left_then -= q;
        }
        if (way == residual_gradient::once) out = at.row(t);
        sum += out.dot(dy.row(t));
      }
      return sum;
    };
    matrix<double> at = x;
    for (index_t i = 0; i < x.size(); ++i)
      CHECK(r.dx.data()[i] == Approx(test::slope_at(at.data()[i], [&] { return surrogate(at); })).margin(1e-8));
  }
}

TEST_CASE("residual_quantizer: with straight-through stages dx is dy once or once a stage", "[codebook][structure][gradient]") {
  const matrix<double> x = test::random_matrix<double>(6, residual_width, 4), dy = test::random_matrix<double>(6, residual_width, 5);
  const auto dx_of = [&](residual_gradient way) {
    residual_quantizer rq{drawn_stages<double>({.encoder = 0, .codebook = 0}), {.gradient = way}};
    return test::train_once(rq, x, dy).dx;
  };
  CHECK(test::same_bits(dx_of(residual_gradient::once), dy));
  CHECK(test::largest_difference(dx_of(residual_gradient::each_stage), matrix<double>(3 * dy)) < 1e-15);
  CHECK(test::largest_difference(dx_of(residual_gradient::through_stages), dy) < 1e-15);
}

TEST_CASE("residual_quantizer: commitment of every stage is that of every prefix", "[codebook][structure]") {
  residual_quantizer rq{drawn_stages<double>({.encoder = 1.0 / 3, .codebook = 0})};
  const matrix<double> x = test::random_matrix<double>(8, residual_width, 4);
  matrix<double> y(8, residual_width), sum = matrix<double>::Zero(8, residual_width);
  decltype(rq)::tape tape;
  rq.forward(x, y, tape);
  double expected = 0;
  for (index_t j = 0; j < 3; ++j) {
    for (index_t t = 0; t < 8; ++t) sum.row(t) += rq.stage(j).codebook().table().to_matrix().row(tape.ids(t, j));
    expected += (x - sum).array().square().mean() / 3;
  }
  CHECK(tape.loss() == Approx(expected));
}

TEST_CASE("residual_quantizer: a codebook that moves between depths is searched as it was left", "[codebook][structure]") {
  const moving_average_codes<double> codes{residual_codes, residual_width, {.decay = 0.5}};
  residual_quantizer rq{vector_quantizer{codes}, 3, moves_between_depths{}};
  initialize(rq, 3);
  auto by_hand = rq.stage(0);
  const auto before = rq.stage(0).codebook().table().to_matrix();
  const matrix<double> x = test::random_matrix<double>(30, residual_width, 4), dy = test::random_matrix<double>(30, residual_width, 5);
  matrix<double> y(30, residual_width), dx(30, residual_width), left = x, value(30, residual_width), sum = matrix<double>::Zero(30, residual_width),
      expected_dx = dy;
  decltype(rq)::tape tape;
  for (int step = 0; step < 2; ++step) {
    rq.forward(x, y, tape);
    rq.backward(dy, dx, tape);
    if (step == 0) CHECK(test::same_bits(rq.stage(0).codebook().table().to_matrix(), before));
    rq.after_step(tape);
    left = x;
    sum.setZero();
    expected_dx = dy;
    for (index_t j = 0; j < 3; ++j) {
      decltype(by_hand)::tape own;
      by_hand.forward(left, value, own);
      CHECK(tape.ids.map().col(j) == own.ids.map());
      expected_dx += 2 * 0.25 / (30 * residual_width) * (left - value);
      left -= value;
      sum += value;
      by_hand.after_step(own);
    }
    CHECK(test::same_bits(y, sum));
    CHECK(test::largest_difference(dx, expected_dx) < 1e-14);
    CHECK(test::same_bits(rq.stage(0).codebook().table().to_matrix(), by_hand.codebook().table().to_matrix()));
    CHECK(test::same_bits(rq.stage(0).codebook().sizes().to_matrix(), by_hand.codebook().sizes().to_matrix()));
  }
}

TEST_CASE("residual_quantizer: dropout leaves later stages out, an item at a time", "[codebook][structure]") {
  residual_quantizer rq{drawn_stages<float>(), {.dropout = 0.6}};
  constexpr index_t items = 400;
  const matrix<float> x = test::random_matrix<float>(3 * items, residual_width, 4);
  std::vector<index_t> borders;
  for (index_t g = 0; g <= items; ++g) borders.push_back(3 * g);
  matrix<float> y(3 * items, residual_width), decoded(3 * items, residual_width);
  decltype(rq)::tape tape;
  rq.forward(x, y, tape, {.training = true, .random = random_source{1}, .groups = borders});
  std::array<index_t, 3> kept{};
  for (index_t g = 0; g < items; ++g) {
    index_t n = 0;
    while (n < 3 && tape.ids(3 * g, n) != no_code) ++n;
    for (index_t i = 0; i < 3; ++i)
      for (index_t j = 0; j < 3; ++j) CHECK((tape.ids(3 * g + i, j) != no_code) == (j < n));
    ++kept[as_size(n - 1)];
  }
  CHECK(std::abs(static_cast<double>(kept[0]) - 0.2 * items) < 4 * std::sqrt(0.16 * items));
  CHECK(std::abs(static_cast<double>(kept[1]) - 0.2 * items) < 4 * std::sqrt(0.16 * items));
  decltype(rq)::workspace workspace;
  rq.decode(tape.ids.map(), decoded, workspace);
  CHECK(test::same_bits(y, decoded));
  CHECK(tape.stages[2].usage.total() == 3 * kept[2]);
  rq.forward(x, y, tape, {.random = random_source{1}, .groups = borders});
  for (index_t t = 0; t < 3 * items; ++t) CHECK(tape.ids(t, 2) != no_code);
}

TEST_CASE("residual_quantizer: losses of a stage that dropout hides tokens from are means over those it sees, or over all", "[codebook][structure]") {
  const std::vector<index_t> items{0, 3, 8};
  const std::vector<double> draws{0.1, 0.1, 0.9};  // the first item keeps one stage, the second both
  const matrix<double> x = test::random_matrix<double>(8, residual_width, 4), none = matrix<double>::Zero(8, residual_width);
  for (const bool over_hidden : {false, true}) {
    const commitment_loss loss{.encoder = 0.5, .codebook = 1, .over_hidden = over_hidden};
    residual_quantizer rq{std::vector{drawn_stage<double>(1, loss), drawn_stage<double>(2, loss)}, {.dropout = 0.5}};
    decltype(rq)::tape tape;
    matrix<double> y(8, residual_width), dx(8, residual_width);
    rq.forward(x, y, tape, {.training = true, .random = random_source{1}.replay(prefix_dropout_site, draws), .groups = items});
    REQUIRE(tape.ids(2, 1) == no_code);
    REQUIRE(tape.ids(3, 1) != no_code);
    const double errors = (x - y).bottomRows(5).squaredNorm(), tokens = over_hidden ? 8 : 5;
    CHECK(tape.stages[1].loss() == Approx(1.5 * errors / (tokens * residual_width)));
    rq.backward(none, dx, tape);
    CHECK(rq.stage(1).codebook().table().gradient_matrix().colwise().sum().isApprox(
        -2 / (tokens * residual_width) * (x - y).bottomRows(5).colwise().sum(), 1e-12));
  }
}

TEST_CASE("residual_quantizer: with a code at zero no stage makes the error larger", "[codebook][structure]") {
  auto stages = drawn_stages<double>();
  for (auto& stage : stages) stage.codebook().table().map().row(0).setZero();
  residual_quantizer rq{stages};
  const matrix<double> x = test::random_matrix<double>(50, residual_width, 4);
  matrix<double> y(50, residual_width);
  decltype(rq)::workspace workspace;
  Eigen::VectorXd error = x.rowwise().norm();
  for (index_t n = 1; n <= 3; ++n) {
    rq.use_stages(n);
    rq.forward(x, y, workspace);
    const Eigen::VectorXd now = (x - y).rowwise().norm();
    CHECK(((now - error).array() <= 1e-14).all());
    error = now;
  }
}

TEST_CASE("residual_quantizer: every promise of a layer", "[codebook][structure][conformance]") {
  const vector_quantizer averaged{moving_average_codes<double>{residual_codes, residual_width}, rotation{}};
  std::uint64_t seed = 1;
  for (const auto& rq : every_residual_gradient(averaged)) test::check_quantizer_promises(rq, seed++);
  test::check_quantizer_promises(residual_quantizer{averaged, 3, moves_between_depths{}}, seed++);
  test::check_quantizer_promises(residual_quantizer{drawn_stages<double>()}, seed++);
  test::check_quantizer_promises(residual_quantizer{residual_quantizer{averaged, 2}, 2}, seed++);
}

TEST_CASE("residual_quantizer: NaN chooses nothing in any stage", "[codebook][structure][nan]") {
  residual_quantizer rq{drawn_stages<float>(), {.gradient = residual_gradient::through_stages}};
  test::check_spoiled_token(rq);
  matrix<float> x = test::random_matrix<float>(3, residual_width, 4);
  x(1, 2) = quiet_nan<float>();
  matrix<index_t> ids(3, 3);
  decltype(rq)::workspace workspace;
  rq.encode(x, ids, workspace);
  CHECK((ids.row(1).array() == no_code).all());
  CHECK((ids.row(0).array() != no_code).all());
}

TEST_CASE("residual_quantizer: what does not fit is refused with its numbers", "[codebook][structure]") {
  using stage = residual_stage<float>;
  CHECK_THROWS_WITH(residual_quantizer(std::vector<stage>{}), Catch::Contains("needs one"));
  CHECK_THROWS_WITH(residual_quantizer(drawn_stage<float>(1), 0), Catch::Contains("needs one, not 0"));
  CHECK_THROWS_WITH(residual_quantizer(drawn_stages<float>(), {.dropout = 1.5}), Catch::Contains("1.5"));
  CHECK_THROWS_WITH(residual_quantizer(drawn_stage<float>(1), 2, moves_between_depths{}), Catch::Contains("\"codebook\" is learned"));
  const stage narrow{learned_codes<float>{3, 2}, {}};
  CHECK_THROWS_WITH(residual_quantizer(std::vector{drawn_stage<float>(1), narrow}), Catch::Contains("[T, 2]"));
  residual_quantizer rq{drawn_stages<float>()};
  CHECK_THROWS_WITH(rq.use_stages(4), Catch::Contains("of 3 stages cannot use 4"));
  matrix<index_t> ids = matrix<index_t>::Constant(1, 3, residual_codes);
  ids.leftCols(2).setZero();
  matrix<float> y(1, residual_width);
  decltype(rq)::workspace workspace;
  CHECK_THROWS_WITH(rq.decode(ids, y, workspace), Catch::Contains("the code 7 in column 2"));
}
