#include <sluice/codebook/mixture_quantizer.hpp>

#include <sluice/codebook/structure/residual.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "../layer/plain_checks.hpp"
#include "codebook_checks.hpp"

using namespace sluice;

namespace {

constexpr index_t mixture_tokens = 13, mixture_parts = 2, mixture_entries = 5, mixture_part_width = 3, mixture_width = mixture_parts * mixture_part_width;

mixture_quantizer<double> mixed_quantizer(mixture_quantizer_options o = {}) {
  mixture_quantizer<double> q(mixture_parts, mixture_entries, mixture_part_width, o);
  initialize(q, 3);
  q.temperature().fill([](index_t m) { return 1.5 + static_cast<double>(m); });
  return q;
}

}  // namespace

TEST_CASE("mixture_quantizer: at inference the nearest code of every part", "[codebook]") {
  auto q = mixed_quantizer();
  const matrix<double> x = test::random_matrix<double>(mixture_tokens, mixture_width, 1);
  mixture_quantizer<double>::workspace workspace;
  matrix<index_t> ids(mixture_tokens, mixture_parts);
  q.encode(x, ids, workspace);
  for (index_t m = 0; m < mixture_parts; ++m) {
    vector_quantizer part{learned_codes<double>{mixture_entries, mixture_part_width}};
    part.codebook().table().assign(q.table().to_matrix().middleRows(m * mixture_entries, mixture_entries));
    decltype(part)::workspace own;
    matrix<index_t> expected(mixture_tokens, 1);
    part.encode(x.middleCols(m * mixture_part_width, mixture_part_width), expected, own);
    CHECK(ids.col(m) == expected);
  }
  matrix<double> y(mixture_tokens, mixture_width), decoded(mixture_tokens, mixture_width);
  q.forward(x, y, workspace);
  q.decode(ids, decoded, workspace);
  CHECK(test::same_bits(y, decoded));
}

TEST_CASE("mixture_quantizer: the gradient is that of the soft choice", "[codebook][gradient]") {
  auto q = mixed_quantizer({.random_drop = false});
  matrix<double> x = test::random_matrix<double>(mixture_tokens, mixture_width, 1);
  const matrix<double> dy = test::random_matrix<double>(mixture_tokens, mixture_width, 2);
  const routing_context<double> context{.random = random_source{5}};
  const auto r = test::train_once(q, x, dy, context);
  const matrix<double> values = q.table().to_matrix();  // constants of the surrogate
  const auto surrogate = [&] {
    double sum = 0;
    const matrix<double> codes = q.table().to_matrix();
    for (index_t t = 0; t < mixture_tokens; ++t)
      for (index_t m = 0; m < mixture_parts; ++m) {
        Eigen::ArrayXd l(mixture_entries);
        for (index_t k = 0; k < mixture_entries; ++k) {
          const double square = (x.row(t).segment(m * mixture_part_width, mixture_part_width) - codes.row(m * mixture_entries + k)).squaredNorm();
          const double u = context.random.uniform(mixture_quantizer<double>::site, 2 * ((t * mixture_parts + m) * mixture_entries + k) + 1);
          l(k) = -square * q.temperature().value()[as_size(m)] / std::sqrt(double(mixture_entries)) - std::log(-std::log(u));
        }
        const Eigen::VectorXd p = l.exp() / l.exp().sum();
        index_t best = 0;
        l.maxCoeff(&best);
        // (o + p - sg[p]) C: the chosen code itself learns, the others by p.
        sum += (dy.row(t).segment(m * mixture_part_width, mixture_part_width) * values.middleRows(m * mixture_entries, mixture_entries).transpose() * p).value();
        sum += dy.row(t).segment(m * mixture_part_width, mixture_part_width).dot(codes.row(m * mixture_entries + best));
      }
    return sum;
  };
  const auto slope = [&](double& number) { return test::slope_at(number, surrogate); };
  for (index_t i = 0; i < x.size(); i += 5) CHECK(r.dx.data()[i] == Approx(slope(x.data()[i])).margin(1e-7));
  for (index_t i = 0; i < mixture_parts * mixture_entries * mixture_part_width; ++i)
    CHECK(r.gradients[0].data()[i] == Approx(slope(q.table().data()[i])).margin(1e-7));
  for (index_t m = 0; m < mixture_parts; ++m)
    CHECK(r.gradients[1].data()[m] == Approx(slope(q.temperature().data()[m])).margin(1e-7));
}

TEST_CASE("mixture_quantizer: frequent codes are left out now and then, and usage follows what was best",
          "[codebook]") {
  auto q = mixed_quantizer();
  q.usage().fill([](index_t i) { return i == 2 ? 1.0 : 0.0; });  // code 2 of part 0 takes everything
  const matrix<double> x = test::random_matrix<double>(mixture_tokens, mixture_width, 1);
  matrix<double> y(mixture_tokens, mixture_width);
  mixture_quantizer<double>::tape tape;
  q.forward(x, y, tape, {.training = true, .random = random_source{1}});
  for (index_t t = 0; t < mixture_tokens; ++t)
    for (index_t i = 0; i < mixture_parts * mixture_entries; ++i) CHECK((tape.logits(t, i) == mixture_quantizer<double>::left_out) == (i == 2));
  q.after_step(tape);
  CHECK(q.usage().value()[2] == Approx(0.9));
  double sum = 0;
  for (const double f : q.usage().value()) sum += f;
  CHECK(sum == Approx(0.9 + mixture_parts * 0.1));
}

TEST_CASE("mixture_quantizer: codes without use become copies of the most used of their part", "[codebook]") {
  auto q = mixed_quantizer();
  const std::array<double, mixture_parts* mixture_entries> usage = {0.2, 0, 0.5, 0.3, 0, 0.2, 0.2, 0.2, 0.2, 0.2};
  q.usage().fill([&](index_t i) { return usage[as_size(i)]; });
  const matrix<double> before = q.table().to_matrix();
  CHECK(q.reassign(random_source{1}) == 2);
  const matrix<double> after = q.table().to_matrix();
  CHECK(test::same_bits(after.row(1), before.row(2)));
  CHECK(test::same_bits(after.row(4), before.row(3)));
  CHECK(test::same_bits(after.bottomRows(mixture_entries), before.bottomRows(mixture_entries)));
}

TEST_CASE("mixture_quantizer: every promise of a layer, and options", "[codebook][conformance]") {
  test::check_quantizer_promises(mixed_quantizer(), 5);
  test::check_quantizer_promises(residual_quantizer{std::vector{mixed_quantizer(), mixed_quantizer()},
                                                    {.gradient = residual_gradient::through_stages}},
                                 5);
  CHECK_THROWS_WITH(mixture_quantizer<float>(2, 1, 3), Catch::Contains("not 2, 3, 1"));
}
