#include <sluice/router/tokens_choose/tucker_key.hpp>

#include <sluice/train/initialize.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;

namespace {

using tucker_router = tucker_key_router<double>;

tucker_router filled_tucker(index_t keys, tucker_router::options o) {
  tucker_router router(6, keys, o);
  initialize(router, 3);
  router.keys().update_vectors();
  return router;
}

const test::table_router tucker_key_in_table("tucker_key_router", [] {
  const auto router = filled_tucker(2, {.heads = 2, .top_k = 3, .key_width = 3, .rank = 2});
  return test::made(router, {.k = 6, .seed = 0});
});

/// All n² scores of one head and core for one token, from the definition.
matrix<double> all_scores(tucker_router& router, const matrix<double>& x, index_t head, index_t core) {
  auto& k = router.keys();
  const index_t n = k.keys(), d = k.width(), r = k.rank();
  const auto unit = [&](std::vector<double> v, parameter<double>& gain) {
    double squares = 0;
    for (const double z : v) squares += z * z;
    for (std::size_t i = 0; i < v.size(); ++i) v[i] *= std::sqrt(double(d)) / std::sqrt(squares) * gain.data()[i];
    return v;
  };
  const matrix<double> q = x * router.query_weight().to_matrix().transpose();
  matrix<double> s[2] = {matrix<double>(n, r), matrix<double>(n, r)};
  for (index_t half = 0; half < 2; ++half) {
    std::vector<double> query;
    for (index_t i = 0; i < d; ++i) query.push_back(q(0, half * d + i));
    query = unit(query, k.query_norm().gain());
    for (index_t key = 0; key < n; ++key)
      for (index_t a = 0; a < r; ++a) {
        std::vector<double> vector;
        for (index_t i = 0; i < d; ++i)
          vector.push_back(k.array().data()[(((head * 2 + half) * n + key) * r + a) * d + i]);
        vector = unit(vector, k.key_norm().gain());
        s[half](key, a) = 0;
        for (index_t i = 0; i < d; ++i) s[half](key, a) += query[as_size(i)] * vector[as_size(i)];
      }
  }
  matrix<double> c(r, r);
  for (index_t i = 0; i < r * r; ++i) c.data()[i] = k.core().data()[(core * k.heads() + head) * r * r + i];
  return s[0] * c * s[1].transpose();
}

}  // namespace

TEST_CASE("small_svd: products of the parts are the matrix, vectors are orthonormal", "[kernel][small_svd]") {
  for (const index_t n : {1, 2, 3, 7}) {
    const matrix<double> a = test::random_matrix<double>(n, n, 5);
    const kernel::small_svd svd(a);
    const matrix<double> s = matrix<double>(svd.s.col(0).asDiagonal());
    CHECK(test::largest_difference(matrix<double>(svd.u * s * svd.v.transpose()), a) <=
          test::bound<double>(8 * n, 8.0));
    CHECK(test::largest_difference(matrix<double>(svd.v.transpose() * svd.v),
                                   matrix<double>(matrix<double>::Identity(n, n))) <= test::bound<double>(8 * n));
    for (index_t i = 1; i < n; ++i) CHECK(svd.s(i, 0) <= svd.s(i - 1, 0));
  }
  const kernel::small_svd zero(matrix<double>::Zero(3, 3));
  CHECK(zero.s.isZero(0));
}

TEST_CASE("tucker_key: with all keys as candidates the search is exact", "[router][tucker_key]") {
  const index_t n = 4, M = 2, heads = 2;
  auto router = filled_tucker(n, {.heads = heads, .top_k = 4, .key_width = 3, .rank = 3, .cores = M});
  const matrix<double> x = test::random_matrix<double>(9, 6, 4);
  const auto r = test::route(router, x);
  for (index_t t = 0; t < 9; ++t)
    for (index_t h = 0; h < heads; ++h) {
      matrix<double> core[2];
      for (index_t m = 0; m < M; ++m) core[m] = all_scores(router, x.row(t), h, m);
      const matrix<double> sum = core[0] + core[1];
      const auto best = test::sorted_positions(sum.data(), n * n);
      for (index_t i = 0; i < 4; ++i) {
        CHECK(r.tape.seen.pair(t, h * 4 + i) == best[as_size(i)]);
        for (index_t m = 0; m < M; ++m)
          CHECK(std::abs(r.tape.seen.scores(t, (h * 4 + i) * M + m) - core[m].data()[best[as_size(i)]]) <=
                test::bound<double>(3 + 9 + 6, 8.0));
      }
    }
}

TEST_CASE("tucker_key: heads that agree share assignments, with a weight a core", "[router][tucker_key]") {
  const index_t n = 2, M = 2;
  auto router = filled_tucker(n, {.heads = 2, .top_k = 4, .key_width = 3, .rank = 2, .cores = M});
  const matrix<double> x = test::random_matrix<double>(3, 6, 4);
  const auto r = test::route(router, x);
  CHECK(router.experts() == M * n * n);
  for (index_t t = 0; t < 3; ++t) {
    REQUIRE(r.plan.of_token(t).size() == 8);  // all four pairs, twice
    for (const index_t i : r.plan.of_token(t)) {
      const index_t m = r.plan.expert(i) / 4, pair = r.plan.expert(i) % 4;
      const double expected =
          all_scores(router, x.row(t), 0, m).data()[pair] + all_scores(router, x.row(t), 1, m).data()[pair];
      CHECK(std::abs(r.plan.weight(i) - expected) <= test::bound<double>(18, 8.0));
    }
  }
}

TEST_CASE("tucker_key: every promise of a router, and gradients of keys, cores, norms and queries",
          "[router][tucker_key][gradient]") {
  const auto router = filled_tucker(3, {.heads = 2, .top_k = 2, .key_width = 2, .rank = 2, .cores = 2});
  const auto report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
  // Few tokens: what a difference is off by grows with the sum that it is of.
  const auto gradients = test::check_router_gradients(router, 3, 82, {});
  INFO(gradients.describe());
  CHECK(gradients.largest_error < 1e-6);
}

TEST_CASE("tucker_key: with folded keys a router chooses and weighs the same, and keeps no keys of its own in a tape",
          "[router][tucker_key]") {
  auto router = filled_tucker(5, {.heads = 2, .top_k = 3, .key_width = 4, .rank = 2, .cores = 2});
  for (auto* norm : {&router.keys().query_norm(), &router.keys().key_norm()})
    for (index_t i = 0; i < 4; ++i) norm->gain().data()[i] = 0.5 + 0.3 * double(i);
  const auto folded = router.folded();
  const matrix<double> x = test::random_matrix<double>(7, 6, 4);
  const auto before = test::route(router, x);
  const auto after = test::route(folded, x);
  CHECK(after.tape.search.unit_keys.size() == 0);
  CHECK(test::same_bits(after.tape.seen.scores, before.tape.seen.scores));
  REQUIRE(after.plan.size() == before.plan.size());
  for (index_t i = 0; i < before.plan.size(); ++i) {
    CHECK(after.plan.expert(i) == before.plan.expert(i));
    CHECK(after.plan.weight(i) == before.plan.weight(i));
  }
  const auto report =
      test::conformance(filled_tucker(3, {.heads = 2, .top_k = 2, .key_width = 2, .rank = 2}).folded());
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("tucker_key: the core penalty counts what is beyond the first singular value",
          "[router][tucker_key][gradient]") {
  auto router = filled_tucker(3, {.heads = 2, .top_k = 2, .key_width = 2, .rank = 3, .cores = 2});
  auto& keys = router.keys();
  ensure_gradients(router);
  zero_gradients(router);
  const double value = keys.core_penalty(0.5);
  CHECK(value > 0);
  const std::vector<double> gradient(keys.core().gradient().begin(), keys.core().gradient().end());
  for (index_t i = 0; i < keys.core().size(); ++i) {
    double& c = keys.core().data()[i];
    const double at = c, h = 1e-6;
    c = at + h;
    const double above = keys.core_penalty(0.5);
    c = at - h;
    const double below = keys.core_penalty(0.5);
    c = at;
    CHECK(std::abs((above - below) / (2 * h) - gradient[as_size(i)]) < 1e-7);
  }
  // A core of rank one costs nothing, and its vectors are the leading ones.
  for (index_t h = 0; h < 2; ++h)
    for (index_t a = 0; a < 3; ++a)
      for (index_t b = 0; b < 3; ++b)
        for (index_t m = 0; m < 2; ++m)
          keys.core().data()[((m * 2 + h) * 3 + a) * 3 + b] = double(a + 1) * double(3 - b) / 4;
  CHECK(keys.core_penalty(1) == 0);
  keys.update_vectors();
  const double length = std::sqrt(14.0);
  for (index_t a = 0; a < 3; ++a) {
    CHECK(keys.row_vectors().data()[a] == Approx(double(a + 1) / length).epsilon(1e-12));
    CHECK(keys.column_vectors().data()[a] == Approx(double(3 - a) / length).epsilon(1e-12));
  }
  initialize(keys, 3);
  for (index_t i = 0; i < keys.core().size(); ++i) CHECK(is_between(keys.core().data()[i], 0.0, 1.0));
  keys.update_vectors();
  for (index_t i = 0; i < 6; ++i) CHECK((keys.row_vectors().data()[i] > 0 && keys.column_vectors().data()[i] > 0));
  // A slow change keeps the sign, also where numbers of u come to add up to less than 0: u = (1, 2, 3 - s), v alike.
  for (const double s : {2.0, 4.0, 6.0, 8.0}) {
    const double u[] = {1, 2, 3 - s}, v[] = {3, 2, 1};
    for (index_t i = 0; i < keys.core().size(); ++i) keys.core().data()[i] = u[i / 3 % 3] * v[i % 3];
    keys.update_vectors();
    CAPTURE(s);
    CHECK(keys.row_vectors().data()[0] == Approx(1 / std::sqrt(5 + (3 - s) * (3 - s))).epsilon(1e-12));
    CHECK(keys.column_vectors().data()[0] == Approx(3 / length).epsilon(1e-12));
  }
}

TEST_CASE("tucker_key: bad options are refused with their numbers", "[router][tucker_key]") {
  CHECK_THROWS_WITH((tucker_router(4, 2, {.top_k = 5})), test::contains("c = 2 with n = 2, k = 5"));
  CHECK_THROWS_WITH((tucker_router(4, 2, {.heads = 0, .top_k = 1})), test::contains("not 1, 0, 2"));
  CHECK_THROWS_WITH(
      (tucker_key_router<double>(4, 2, {.top_k = 2, .key_width = 3}, rms_norm<double>(2), rms_norm<double>(3))),
      test::contains("rows of width 3; the norm is for width 2"));
}
