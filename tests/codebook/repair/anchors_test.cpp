#include <sluice/codebook/repair/anchors.hpp>

#include <sluice/codebook/vector_quantizer.hpp>

#include "../codebook_checks.hpp"

using namespace sluice;

namespace {

constexpr index_t anchor_width = 3, anchor_codes = 6;

template <typename Metric = squared_distance>
auto anchored_quantizer(anchor_options options) {
  vector_quantizer q{learned_codes<double>{anchor_codes, anchor_width}, Metric{}, anchors<double, Metric>{anchor_codes, anchor_width, options}};
  q.codebook().table().assign(test::random_matrix<double>(anchor_codes, anchor_width, 3));
  return q;
}

template <typename Q>
matrix<double> codes_after(Q& q, typename Q::tape& tape, const matrix<double>& x, std::uint64_t seed = 1) {
  matrix<double> y(x.rows(), x.cols());
  q.forward(x, y, tape, {.training = true, .random = random_source{seed}});
  q.after_step(tape);
  return q.codebook().table().to_matrix();
}

}  // namespace

TEST_CASE("anchors: codes that all are used alike stay where they are", "[codebook]") {
  auto q = anchored_quantizer({.choice = anchor_choice::closest});
  const matrix<double> codes = q.codebook().table().to_matrix();
  auto& usage = q.policy<anchors<double, squared_distance>>().usage();
  usage.fill([](index_t) { return 1.0 / anchor_codes; });
  decltype(q)::tape tape;
  CHECK(test::same_bits(codes_after(q, tape, codes), codes));
  CHECK(tape.replaced.empty());
}

TEST_CASE("anchors: a code that was never used moves to its anchor but for a thousandth", "[codebook]") {
  auto q = anchored_quantizer({.choice = anchor_choice::closest});
  matrix<double> codes = q.codebook().table().to_matrix();
  codes.row(4).setConstant(50);
  q.codebook().table().assign(codes);
  const matrix<double> x = codes.topRows(4);
  decltype(q)::tape tape;
  const matrix<double> after = codes_after(q, tape, x);
  index_t nearest = 0;
  (x.rowwise() - codes.row(4)).rowwise().norm().minCoeff(&nearest);
  const double alpha = std::exp(-1e-3);
  CHECK(test::largest_difference(after.row(4), (1 - alpha) * codes.row(4) + alpha * x.row(nearest)) < 1e-14);
  REQUIRE(tape.replaced.size() == 2);  // nobody chose code 5 either
  CHECK(tape.replaced[0] == 4);
}

TEST_CASE("anchors: sampled anchors are tokens by the softmax of their scores", "[codebook]") {
  const matrix<double> x = test::random_matrix<double>(7, anchor_width, 8);
  Eigen::VectorXd found = Eigen::VectorXd::Zero(7);
  Eigen::VectorXd expected;
  constexpr int draws = 4000;
  for (int i = 0; i < draws; ++i) {
    auto q = anchored_quantizer({});
    matrix<double> codes = q.codebook().table().to_matrix();
    codes.row(5) = Eigen::RowVector3d(4, 4, 4);
    q.codebook().table().assign(codes);
    if (i == 0) {
      expected = (-(x.rowwise() - codes.row(5)).rowwise().squaredNorm()).array().exp();
      expected /= expected.sum();
    }
    decltype(q)::tape tape;
    const matrix<double> after = codes_after(q, tape, x, static_cast<std::uint64_t>(i));
    const double alpha = std::exp(-1e-3);
    index_t token = 0;
    const double apart = (((x * alpha).rowwise() + (1 - alpha) * codes.row(5)).rowwise() - after.row(5))
                             .rowwise()
                             .norm()
                             .minCoeff(&token);
    REQUIRE(apart < 1e-12);
    found(token) += 1.0 / draws;
  }
  // Five deviations of a share.
  for (index_t t = 0; t < 7; ++t) CHECK(std::abs(found(t) - expected(t)) < 5 * std::sqrt(expected(t) / draws) + 1e-3);
}

TEST_CASE("anchors: the pool of random ones fills up, and is then filled anew or row by row", "[codebook]") {
  auto q = anchored_quantizer({.choice = anchor_choice::random});
  auto& policy = q.policy<anchors<double, squared_distance>>();
  initialize(policy, 1);
  const matrix<double> x = test::random_matrix<double>(4, anchor_width, 8), more = test::random_matrix<double>(4, anchor_width, 9);
  const matrix<double> many = test::random_matrix<double>(20, anchor_width, 10);
  decltype(q)::tape tape;
  codes_after(q, tape, x);
  CHECK(test::same_bits(policy.pool().to_matrix().topRows(4), x));
  codes_after(q, tape, more);
  CHECK(test::same_bits(policy.pool().to_matrix().bottomRows(2), more.topRows(2)));
  codes_after(q, tape, x, 3);  // now full: four other rows
  index_t changed = 0;
  for (index_t c = 0; c < anchor_codes; ++c)
    for (index_t t = 0; t < 4; ++t) changed += test::same_bits(policy.pool().to_matrix().row(c), x.row(t));
  CHECK(changed >= 4);
  codes_after(q, tape, many);
  for (index_t c = 0; c < anchor_codes; ++c)
    CHECK((many.rowwise() - policy.pool().to_matrix().row(c)).rowwise().norm().minCoeff() == 0);
}

TEST_CASE("anchors: the first batch alone, if asked for", "[codebook]") {
  auto q = anchored_quantizer({.choice = anchor_choice::closest, .first_batch_only = true});
  const matrix<double> x = test::random_matrix<double>(4, anchor_width, 8), other = test::random_matrix<double>(4, anchor_width, 9);
  decltype(q)::tape tape;
  const matrix<double> first = codes_after(q, tape, x);
  CHECK(test::same_bits(codes_after(q, tape, other), first));
}

TEST_CASE("anchors: every promise of a layer", "[codebook][conformance]") {
  test::check_quantizer_promises(
      vector_quantizer{learned_codes<double>{anchor_codes, anchor_width}, cosine_similarity{}, anchors<double>{anchor_codes, anchor_width}}, 5);
  test::check_quantizer_promises(
      vector_quantizer{learned_codes<double>{anchor_codes, anchor_width},
                       anchors<double, squared_distance>{anchor_codes, anchor_width, {.choice = anchor_choice::random}}},
      5);
}

TEST_CASE("anchors: what does not fit is refused with its numbers", "[codebook]") {
  CHECK_THROWS_WITH(anchors<float>(0, 3), Catch::Contains("not 0, 3"));
  vector_quantizer q{learned_codes<double>{anchor_codes, anchor_width}, anchors<double>{anchor_codes + 1, anchor_width}};
  initialize(q, 1);
  decltype(q)::tape tape;
  CHECK_THROWS_WITH(codes_after(q, tape, test::random_matrix<double>(4, anchor_width, 8)), Catch::Contains("anchors of 7 codes"));
}
