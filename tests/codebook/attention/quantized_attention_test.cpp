#include <sluice/codebook/attention/quantized_attention.hpp>

#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../../layer/plain_checks.hpp"

using namespace sluice;

static_assert(TrainableLayer<quantized_attention<float>>);

namespace {

quantized_attention<double> attention_case(index_t codes = 4) {
  quantized_attention<double> a{5, {.heads = 2, .key_width = 3, .value_width = 4, .codes = codes, .block = 4, .window = 3,
                                    .commitment = 0.1, .length = 100}};
  initialize(a, 5);
  a.content_bias().fill([](index_t i) { return 0.1 * static_cast<double>(i); });
  a.position_bias().fill([](index_t i) { return 0.3 - 0.1 * static_cast<double>(i); });
  for (index_t h = 0; h < 2; ++h) a.codebook(h).codebook().table().assign(test::random_matrix<double>(codes, 3, 70 + as_size(h)));
  return a;
}

/// Softmax over all earlier keys, each as its code: quadratic in the length.
matrix<double> attended_by_hand(quantized_attention<double>& a, const matrix<double>& x, const matrix<index_t>* codes_of_key) {
  const index_t T = x.rows(), D = x.cols(), M = a.options().window, dk = 3, dv = 4;
  const auto projected = [&](parameter<double>& w) { return matrix<double>(x * w.to_matrix().transpose()); };
  const auto silu_of = [](const matrix<double>& z) { return matrix<double>(z.array() / (1 + (-z.array()).exp())); };
  const matrix<double> queries = projected(a.query()), keys = projected(a.key()), values = silu_of(projected(a.value()));
  matrix<double> features(M + 1, D);
  for (index_t d = 0; d <= M; ++d)
    for (index_t i = 0; i < D; ++i) {
      const double place = static_cast<double>(d) / std::pow(100.0, 2.0 * static_cast<double>(i % 3) / static_cast<double>(D));
      features(d, i) = i < 3 ? std::sin(place) : std::cos(place);
    }
  const double scale = std::pow(3.0, -0.25);
  const matrix<double> r = scale * features * a.relative().to_matrix().transpose();
  matrix<double> gated(T, 2 * dv);
  for (index_t h = 0; h < 2; ++h) {
    const auto normed = [&](const matrix<double>& m, index_t t) {
      const Eigen::RowVectorXd row = m.row(t).segment(h * dk, dk);
      return Eigen::RowVectorXd(scale * row / std::sqrt(row.squaredNorm() / 3 + 1e-6));
    };
    const matrix<double> table = a.codebook(h).codebook().table().to_matrix();
    const Eigen::RowVectorXd u = scale * a.content_bias().to_matrix().col(0).segment(h * dk, dk).transpose();
    const Eigen::RowVectorXd v = scale * a.position_bias().to_matrix().col(0).segment(h * dk, dk).transpose();
    for (index_t i = 0; i < T; ++i) {
      Eigen::VectorXd scores(i + 1);
      for (index_t j = 0; j <= i; ++j) {
        index_t code = 0;
        if (codes_of_key != nullptr)
          code = (*codes_of_key)(j, h);
        else
          (table.rowwise() - normed(keys, j)).rowwise().squaredNorm().minCoeff(&code);
        scores[j] = (normed(queries, i) + u).dot(table.row(code));
        if (i - j <= M) scores[j] += (normed(queries, i) + v).dot(r.row(i - j).segment(h * dk, dk));
      }
      const Eigen::VectorXd p = (scores.array() - scores.maxCoeff()).exp();
      gated.row(i).segment(h * dv, dv) = (p / p.sum()).transpose() * values.topRows(i + 1).middleCols(h * dv, dv);
    }
  }
  gated.array() *= silu_of(projected(a.gate())).array();
  return gated * a.output().to_matrix().transpose();
}

}  // namespace

TEST_CASE("quantized_attention: in linear time the same as softmax over all keys", "[codebook][attention]") {
  auto a = attention_case();
  for (const index_t T : {1, 3, 4, 23}) {
    const matrix<double> x = test::random_matrix<double>(T, 5, 11);
    matrix<double> y(T, 5);
    quantized_attention<double>::workspace ws;
    a.forward(x, y, ws);
    CHECK(test::largest_difference(y, attended_by_hand(a, x, nullptr)) < 1e-12);
  }
}

TEST_CASE("quantized_attention: sequences begin anew", "[codebook][attention]") {
  auto a = attention_case();
  const matrix<double> x = test::random_matrix<double>(30, 5, 11);
  matrix<double> together(30, 5), first(11, 5), second(19, 5);
  quantized_attention<double>::workspace ws;
  const std::vector<index_t> borders{0, 11, 30};
  a.forward(x, together, ws, {.sequences = borders});
  a.forward(x.topRows(11), first, ws);
  a.forward(x.bottomRows(19), second, ws);
  CHECK(test::same_bits(together.topRows(11), first));
  CHECK(test::same_bits(together.bottomRows(19), second));
}

TEST_CASE("quantized_attention: every promise of a layer", "[codebook][attention][conformance]") {
  const auto report = sluice::check_layer(attention_case(), {.seed = 5});
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("quantized_attention: gradients that no choice stands before are those of differences", "[codebook][attention][gradient]") {
  // Keys only move codes, which stay where they are for small steps: everything but the keys' projection has exact
  // gradients once keys are held, and x where it makes values, queries and gates.
  auto a = attention_case();
  const index_t T = 14;
  const matrix<double> x = test::random_matrix<double>(T, 5, 11), dy = test::random_matrix<double>(T, 5, 12);
  matrix<double> y(T, 5), dx(T, 5);
  quantized_attention<double>::tape tape;
  a.forward(x, y, tape);
  zero_gradients(a);
  a.backward(dy, dx, tape);
  const auto objective = [&] {
    matrix<double> out(T, 5);
    quantized_attention<double>::workspace ws;
    a.forward(x, out, ws);
    return (out.array() * dy.array()).sum();
  };
  for (auto* p : {&a.query(), &a.value(), &a.gate(), &a.output(), &a.relative(), &a.content_bias(), &a.position_bias()})
    for (index_t i = 0; i < p->size(); i += 3)
      CHECK(p->gradient()[as_size(i)] == Approx(test::slope_at(p->data()[i], objective)).margin(1e-7));
}

TEST_CASE("quantized_attention: keys that nobody has to round make attention exact", "[codebook][attention]") {
  auto a = attention_case(6);
  const matrix<double> x = test::random_matrix<double>(6, 5, 11);
  matrix<double> y(6, 5);
  quantized_attention<double>::workspace ws;
  a.forward(x, y, ws);
  for (index_t h = 0; h < 2; ++h) a.codebook(h).codebook().table().assign(ws.k.map().middleCols(3 * h, 3));
  matrix<index_t> own(6, 2);
  for (index_t t = 0; t < 6; ++t) own.row(t).setConstant(t);
  a.forward(x, y, ws);
  CHECK(test::largest_difference(y, attended_by_hand(a, x, &own)) < 1e-12);
}
