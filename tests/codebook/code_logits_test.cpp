#include <sluice/codebook/code_logits.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

// More than a tile of either.
constexpr index_t logit_tokens = 37, logit_codes = 300, logit_width = 5;

enum class logit_form { products, squares, distances };

double logit(const matrix<double>& x, const matrix<double>& codes, index_t t, index_t c, logit_form form) {
  const double square = (x.row(t) - codes.row(c)).squaredNorm();
  return form == logit_form::products  ? 1.5 * x.row(t).dot(codes.row(c))
         : form == logit_form::squares ? -0.3 * square
                                       : -std::sqrt(square);
}

code_logits<double> logits_of(const matrix<double>& x, const matrix<double>& codes, logit_form form) {
  code_logits<double> l;
  const const_matrix_map<double> tokens(x.data(), x.rows(), x.cols()), table(codes.data(), codes.rows(), codes.cols());
  if (form == logit_form::products) l.set_products(tokens, table, 1.5);
  if (form == logit_form::squares) l.set_squares(tokens, table, 0.3, {});
  if (form == logit_form::distances) l.set_distances(tokens, table, {});
  return l;
}

}  // namespace

TEST_CASE("code_logits: tiles, sums and gradients are those of the whole matrix", "[codebook][gradient]") {
  const matrix<double> x = test::random_matrix<double>(logit_tokens, logit_width, 1), codes = test::random_matrix<double>(logit_codes, logit_width, 2);
  const matrix<double> dl = test::random_matrix<double>(logit_tokens, logit_codes, 3);
  for (const logit_form form : {logit_form::products, logit_form::squares, logit_form::distances}) {
    CAPTURE(static_cast<int>(form));
    const auto l = logits_of(x, codes, form);
    matrix<double> all(logit_tokens, logit_codes), seen = matrix<double>::Zero(logit_tokens, logit_codes);
    for (index_t t = 0; t < logit_tokens; ++t)
      for (index_t c = 0; c < logit_codes; ++c) all(t, c) = logit(x, codes, t, c, form);
    test::shuffled_threads threads(3);
    const auto copy = [&](index_t t, index_t m, index_t c, index_t n, const double* tile) {
      for (index_t i = 0; i < m; ++i)
        for (index_t j = 0; j < n; ++j) seen(t + i, c + j) += tile[i * l.tile_codes + j];
    };
    l.by_tokens(threads, copy);
    CHECK(test::largest_difference(seen, all) < 1e-12);
    l.by_codes(threads, copy);
    CHECK(test::largest_difference(seen, matrix<double>(2 * all)) < 1e-12);

    code_logits<double>::log_sums sums;
    buffer<double> means, entropies;
    l.sum(sums, means, threads, [&](index_t t, index_t m, index_t c, index_t n, const double*, double* out) {
      for (index_t i = 0; i < m; ++i)
        for (index_t j = 0; j < n; ++j) out[i * l.tile_codes + j] = dl(t + i, c + j);
    });
    for (index_t t = 0; t < logit_tokens; ++t) {
      const Eigen::ArrayXd e = all.row(t).array().exp();
      CHECK(sums[t] == Approx(std::log(e.sum())));
      CHECK(means[t] == Approx((e * dl.row(t).transpose().array()).sum() / e.sum()));
    }
    l.entropies(sums, entropies, threads);
    for (index_t t = 0; t < logit_tokens; ++t) {
      const Eigen::ArrayXd p = all.row(t).array().exp() / all.row(t).array().exp().sum();
      CHECK(entropies[t] == Approx(-(p * p.log()).sum()));
    }

    matrix<double> dx = matrix<double>::Zero(logit_tokens, logit_width), dcodes = matrix<double>::Zero(logit_codes, logit_width);
    const auto backward = [&](const executor_ref& executor, matrix<double>& to_x, matrix<double>& to_codes) {
      l.backward(
          [&](index_t t, index_t m, index_t c, index_t n, const double*, double* out) {
            for (index_t i = 0; i < m; ++i)
              for (index_t j = 0; j < n; ++j) out[i * l.tile_codes + j] = dl(t + i, c + j);
          },
          to_x, {to_codes.data(), logit_codes, logit_width}, executor);
    };
    backward({}, dx, dcodes);
    matrix<double> again_x = matrix<double>::Zero(logit_tokens, logit_width), again_codes = matrix<double>::Zero(logit_codes, logit_width);
    backward(threads, again_x, again_codes);
    CHECK(test::same_bits(dx, again_x));
    CHECK(test::same_bits(dcodes, again_codes));
    matrix<double> expected_x = matrix<double>::Zero(logit_tokens, logit_width), expected_codes = matrix<double>::Zero(logit_codes, logit_width);
    for (index_t t = 0; t < logit_tokens; ++t)
      for (index_t c = 0; c < logit_codes; ++c) {
        const Eigen::RowVectorXd apart = x.row(t) - codes.row(c);
        if (form == logit_form::products) {
          expected_x.row(t) += dl(t, c) * 1.5 * codes.row(c);
          expected_codes.row(c) += dl(t, c) * 1.5 * x.row(t);
        } else {
          const double slope = form == logit_form::squares ? 0.6 : 1 / apart.norm();
          expected_x.row(t) -= dl(t, c) * slope * apart;
          expected_codes.row(c) += dl(t, c) * slope * apart;
        }
      }
    CHECK(test::largest_difference(dx, expected_x) < 1e-11);
    CHECK(test::largest_difference(dcodes, expected_codes) < 1e-11);
  }
}

TEST_CASE("code_logits: a distance of zero has no gradient", "[codebook][gradient]") {
  const matrix<double> x = test::random_matrix<double>(1, logit_width, 1);
  const auto l = logits_of(x, x, logit_form::distances);
  matrix<double> dx = matrix<double>::Zero(1, logit_width), dcodes = matrix<double>::Zero(1, logit_width);
  l.backward([](index_t, index_t, index_t, index_t, const double* in, double* out) { out[0] = in[0] + 1; }, dx,
             {dcodes.data(), 1, logit_width}, {});
  CHECK(dx.isZero(1e-7));
  CHECK(dcodes.isZero(1e-7));
}
