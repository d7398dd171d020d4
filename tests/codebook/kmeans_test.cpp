#include <sluice/codebook/kmeans.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

/// Tokens around `centres` points that are far from one another, in turns.
template <typename Scalar>
matrix<Scalar> clustered_tokens(index_t tokens, index_t centres, index_t width, std::uint64_t seed) {
  const matrix<Scalar> points = 20 * test::random_matrix<Scalar>(centres, width, seed);
  matrix<Scalar> x = test::random_matrix<Scalar>(tokens, width, seed + 1);
  for (index_t t = 0; t < tokens; ++t) x.row(t) += points.row(t % centres);
  return x;
}

template <typename Scalar>
bool is_row_of(const matrix<Scalar>& x, const matrix<Scalar>& codes, index_t c) {
  for (index_t t = 0; t < x.rows(); ++t)
    if (x.row(t) == codes.row(c)) return true;
  return false;
}

}  // namespace

TEMPLATE_TEST_CASE("kmeans: codes are the means of the tokens nearest to them once it has settled",
                   "[codebook][kmeans]", float, double) {
  using S = TestType;
  const matrix<S> x = test::random_matrix<S>(300, 5, 1);
  kmeans<S> clusters(12, 5, {.rounds = 200});
  clusters.begin(x, random_rows{random_source(3)});
  const kmeans_report report = clusters.fit(x);
  REQUIRE(report.settled);
  CHECK(report.rounds > 2);
  const std::vector<index_t> ids(clusters.ids().begin(), clusters.ids().end());
  const double inertia = clusters.label(x);
  CHECK(std::equal(ids.begin(), ids.end(), clusters.ids().begin()));
  matrix<S> means = matrix<S>::Zero(12, 5);
  std::vector<S> counts(12, S(0));
  double sum = 0;
  for (index_t t = 0; t < 300; ++t) {
    const index_t id = ids[as_size(t)];
    means.row(id) += x.row(t);
    counts[as_size(id)] += 1;
    S nearest = (x.row(t) - clusters.table().row(0)).squaredNorm();
    for (index_t c = 1; c < 12; ++c) nearest = std::min(nearest, (x.row(t) - clusters.table().row(c)).squaredNorm());
    CHECK((x.row(t) - clusters.table().row(id)).squaredNorm() <= nearest + test::bound<S>(5, 16));
    sum += static_cast<double>(nearest);
  }
  for (index_t c = 0; c < 12; ++c) {
    means.row(c) /= counts[as_size(c)];
    CHECK(clusters.sizes()[as_size(c)] == counts[as_size(c)]);
  }
  CHECK(test::largest_difference(means, matrix<S>(clusters.table())) <= test::bound<S>(60, 4));
  CHECK(std::abs(inertia - sum) <= static_cast<double>(test::bound<S>(300, 4)) * sum);
}

TEST_CASE("kmeans: a weight of two is the token twice", "[codebook][kmeans]") {
  const matrix<double> x = test::random_matrix<double>(40, 3, 2);
  std::vector<double> weights(40);
  std::vector<index_t> repeated;
  for (index_t t = 0; t < 40; ++t) {
    weights[as_size(t)] = static_cast<double>(t % 3);
    for (index_t i = 0; i < t % 3; ++i) repeated.push_back(t);
  }
  matrix<double> all(static_cast<index_t>(repeated.size()), 3);
  for (index_t i = 0; i < all.rows(); ++i) all.row(i) = x.row(repeated[as_size(i)]);
  kmeans<double, keep_codes> weighed(5, 3), plain(5, 3);
  weighed.begin_at(x.topRows(5));
  plain.begin_at(x.topRows(5));
  weighed.fit(x, {}, weights);
  plain.fit(all);
  CHECK(test::largest_difference(weighed.table(), plain.table()) < 1e-12);
  CHECK(std::abs(weighed.label(x, {}, weights) - plain.label(all)) < 1e-9);
}

TEST_CASE("kmeans: as many rounds as asked for, or as few as a tolerance allows", "[codebook][kmeans]") {
  const matrix<double> x = test::random_matrix<double>(400, 4, 5);
  const auto rounds = [&](kmeans_options o) {
    kmeans<double> clusters(10, 4, o);
    clusters.begin(x, spread_rows{random_source(2)});
    return clusters.fit(x).rounds;
  };
  CHECK(rounds({.rounds = 0}) == 0);
  CHECK(rounds({.rounds = 3}) == 3);
  CHECK(rounds({.rounds = 400, .until_settled = false}) == 400);
  const index_t settled = rounds({.rounds = 400});
  CHECK(settled < 400);
  const index_t rough = rounds({.rounds = 400, .tolerance = 1e-2});
  CHECK(rough < settled);
  CHECK(rough > 1);
}

TEMPLATE_TEST_CASE("kmeans: spherical codes have length 1 and win by product", "[codebook][kmeans]", float, double) {
  using S = TestType;
  const matrix<S> x = test::random_matrix<S>(200, 6, 7);
  kmeans<S> clusters(9, 6, {.rounds = 100, .spherical = true});
  clusters.begin(x, random_rows{random_source(1)});
  CHECK(clusters.fit(x).settled);
  for (index_t c = 0; c < 9; ++c) CHECK(std::abs(clusters.table().row(c).norm() - 1) <= test::bound<S>(6));
  clusters.label(x);
  for (index_t t = 0; t < 200; ++t) {
    const matrix<S> products = clusters.table() * x.row(t).transpose();
    CHECK(products(clusters.ids()[as_size(t)], 0) >= products.maxCoeff() - test::bound<S>(6, 8));
  }
}

TEMPLATE_TEST_CASE("kmeans: equal bits for any thread count", "[codebook][kmeans][threads]", float, double) {
  using S = TestType;
  matrix<S> x = clustered_tokens<S>(150, 6, 9, 8);
  x(20, 4) = quiet_nan<S>();
  const auto run = [&](const executor_ref& executor) {
    kmeans<S, split_codes<S>> clusters(25, 9, {.rounds = 6, .tolerance = 1e-9}, split_codes<S>(random_source(4)));
    clusters.begin(x, spread_rows{random_source(9)}, executor);
    clusters.fit(x, executor);
    clusters.learn(x.topRows(70), executor);
    clusters.label(x, executor);
    return matrix<S>(clusters.table());
  };
  const matrix<S> serial = run({});
  for (const int threads : {1, 2, 3, 8}) {
    test::shuffled_threads executor(threads);
    CHECK(test::same_bits(serial, run(executor)));
  }
}

TEMPLATE_TEST_CASE("kmeans: batch after batch each code is the mean of what it was given", "[codebook][kmeans]", float,
                   double) {
  using S = TestType;
  const matrix<S> x = clustered_tokens<S>(240, 8, 4, 12);
  kmeans<S> clusters(8, 4);
  clusters.begin_at(x.topRows(8));  // one of each cluster, which is far from the others
  for (index_t t = 0; t < 240; t += 24) clusters.learn(x.middleRows(t, 24));
  kmeans<S> whole(8, 4, {.rounds = 1});
  whole.begin_at(x.topRows(8));
  whole.fit(x);
  CHECK(test::largest_difference(clusters.table(), whole.table()) <= test::bound<S>(30, 64));
  for (index_t c = 0; c < 8; ++c) CHECK(clusters.sizes()[as_size(c)] == S(30));

  // Codes and sizes are all there is to save.
  kmeans<S> first(8, 4), second(8, 4);
  first.begin_at(x.topRows(8));
  first.learn(x.topRows(100));
  second.begin_at(matrix<S>(first.table()), first.sizes());
  first.learn(x.bottomRows(140));
  second.learn(x.bottomRows(140));
  CHECK(test::same_bits(first.table(), second.table()));

  kmeans<S> continued(8, 4, {.rounds = 1});  // a fit may be gone on from as well
  continued.begin_at(x.topRows(8));
  continued.fit(x.topRows(120));
  continued.learn(x.bottomRows(120));
  CHECK(test::largest_difference(continued.table(), whole.table()) <= test::bound<S>(30, 64));
}

TEST_CASE("kmeans: tokens that hold NaN are in no mean, no tokens change nothing", "[codebook][kmeans][nan]") {
  const matrix<float> clean = clustered_tokens<float>(60, 3, 5, 20);
  matrix<float> x(61, 5);
  x.topRows(30) = clean.topRows(30);
  x.bottomRows(30) = clean.bottomRows(30);
  x.row(30).setConstant(quiet_nan<float>());
  kmeans<float> with(3, 5), without(3, 5);
  with.begin_at(clean.topRows(3));
  without.begin_at(clean.topRows(3));
  with.fit(x);
  without.fit(clean);
  CHECK(test::same_bits(with.table(), without.table()));
  CHECK(with.ids()[30] == no_code);
  with.fit(x.topRows(0));
  with.learn(x.topRows(0));
  CHECK(with.label(x.topRows(0)) == 0);
  CHECK(test::same_bits(with.table(), without.table()));
}

TEST_CASE("kmeans: what cannot be is refused", "[codebook][kmeans]") {
  CHECK_THROWS_AS(kmeans<float>(0, 3), std::invalid_argument);
  CHECK_THROWS_AS(kmeans<float>(3, 0), std::invalid_argument);
  CHECK_THROWS_AS(kmeans<float>(3, 3, {.rounds = -1}), std::invalid_argument);
  CHECK_THROWS_AS(kmeans<float>(3, 3, {.tolerance = quiet_nan<double>()}), std::invalid_argument);
  kmeans<float> clusters(2, 3);
  const matrix<float> x = test::random_matrix<float>(4, 3, 1);
  CHECK_THROWS_AS(clusters.fit(x), std::invalid_argument);
  CHECK_THROWS_AS(clusters.begin(x.topRows(0), random_rows{random_source(1)}), std::invalid_argument);
  CHECK_THROWS_AS(clusters.begin_at(x), std::invalid_argument);
  clusters.begin_at(x.topRows(2));
  CHECK_THROWS_AS(clusters.fit(x.leftCols(2)), std::invalid_argument);
  const std::vector<float> negative{1, 1, -1, 1}, few{1, 1}, nan{1, quiet_nan<float>(), 1, 1};
  CHECK_THROWS_AS(clusters.fit(x, {}, negative), std::invalid_argument);
  CHECK_THROWS_AS(clusters.learn(x, {}, few), std::invalid_argument);
  CHECK_THROWS_AS(clusters.label(x, {}, nan), std::invalid_argument);
}

TEMPLATE_TEST_CASE("random_rows: different rows, as often as there are", "[codebook][kmeans]", float, double) {
  using S = TestType;
  const matrix<S> x = test::random_matrix<S>(30, 2, 1);
  std::vector<S> weights(30, S(1));
  weights[3] = weights[7] = 0;
  matrix<S> codes(28, 2);
  random_rows{random_source(5)}(x, std::span<const S>(weights), matrix_map<S>(codes.data(), 28, 2), {});
  for (index_t c = 0; c < 28; ++c) {
    CHECK(is_row_of<S>(x, codes, c));
    CHECK(codes.row(c) != x.row(3));
    CHECK(codes.row(c) != x.row(7));
    for (index_t other = 0; other < c; ++other) CHECK(codes.row(c) != codes.row(other));
  }
  matrix<S> many(70, 2);
  random_rows{random_source(5)}(x, std::span<const S>(), matrix_map<S>(many.data(), 70, 2), {});
  CHECK(many.topRows(30) == many.middleRows(30, 30));
}

TEMPLATE_TEST_CASE("spread_rows: a code for each of clusters that are far apart, whatever the weights",
                   "[codebook][kmeans]", float, double) {
  using S = TestType;
  const index_t centres = 16;
  matrix<S> x = clustered_tokens<S>(800, centres, 6, 30);
  x(100, 0) = quiet_nan<S>();
  for (const std::uint64_t seed : {1, 2, 3}) {
    matrix<S> codes(centres, 6);
    spread_rows{random_source(seed)}(x, std::span<const S>(), matrix_map<S>(codes.data(), centres, 6), {});
    std::vector<index_t> found;
    for (index_t c = 0; c < centres; ++c)
      for (index_t t = 0; t < 800; ++t)
        if (x.row(t) == codes.row(c)) found.push_back(t % centres);
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    CHECK(static_cast<index_t>(found.size()) >= centres - 1);
  }
  // More codes than points that differ: they come again.
  const matrix<S> same = matrix<S>::Ones(5, 2);
  matrix<S> codes(4, 2);
  spread_rows{random_source(1)}(same, std::span<const S>(), matrix_map<S>(codes.data(), 4, 2), {});
  CHECK(codes == matrix<S>::Ones(4, 2));
}

TEST_CASE("spread_rows: rows are drawn by weight times squared distance", "[codebook][kmeans]") {
  // Three points on a line, the first code fixed by its weight: the second is drawn 1 : 9 times its weight.
  matrix<double> x(3, 1);
  x << 0, 1, 3;
  const std::vector<double> weights{1e9, 3, 1};
  index_t far = 0;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    matrix<double> codes(2, 1);
    spread_rows{random_source(seed)}(x, std::span<const double>(weights), matrix_map<double>(codes.data(), 2, 1), {});
    CHECK(codes(0, 0) == 0);
    far += codes(1, 0) == 3;
  }
  CHECK(std::abs(static_cast<double>(far) - 300) < 40);  // 9 of 12; four and a half deviations
}

TEST_CASE("keep_codes, farthest_tokens, split_codes: what becomes of empty codes", "[codebook][kmeans]") {
  matrix<double> x(6, 1);
  x << 0, 1, 2, 3, 10, 100;
  matrix<double> start(4, 1);
  start << 1, 1, 60, 1;  // 0, 1, 2, 3, 10 go to the first, 100 to the third, alone
  const auto run = [&](auto rule) {
    kmeans<double, decltype(rule)> clusters(4, 1, {.rounds = 1}, rule);
    clusters.begin_at(start);
    clusters.fit(x);
    return matrix<double>(clusters.table());
  };
  matrix<double> kept(4, 1), farthest(4, 1);
  kept << 16.0 / 5, 1, 100, 1;
  CHECK(test::largest_difference(run(keep_codes{}), kept) < 1e-12);
  farthest << 1, 10, 100, 3;  // 100 is farthest from its code, but alone
  CHECK(test::largest_difference(run(farthest_tokens<double>{}), farthest) < 1e-12);
  const matrix<double> split = run(split_codes<double>{random_source(1)});
  CHECK(split(2, 0) == 100);  // one token alone is not split
  const double up = 1 + 1.0 / 1024, down = 1 - 1.0 / 1024;
  CHECK(std::abs(split(1, 0) - 3.2 * up) < 0.02);
  CHECK(std::abs(split(0, 0) - 3.2 * down) < 0.02);
  CHECK(split(0, 0) != split(3, 0));
}

TEMPLATE_TEST_CASE("kmeans: with a rule for empty codes none stays empty", "[codebook][kmeans]", float, double) {
  using S = TestType;
  const matrix<S> x = clustered_tokens<S>(400, 5, 3, 40);
  const auto empty_after = [&](auto rule) {
    kmeans<S, decltype(rule)> clusters(40, 3, {.rounds = 30}, rule);
    clusters.begin_at(matrix<S>::Constant(40, 3, S(1)));
    clusters.fit(x);
    clusters.label(x);
    std::vector<index_t> counts(40, 0);
    for (const index_t id : clusters.ids()) ++counts[as_size(id)];
    return std::count(counts.begin(), counts.end(), 0);
  };
  CHECK(empty_after(keep_codes{}) > 30);
  CHECK(empty_after(farthest_tokens<S>{}) == 0);
  CHECK(empty_after(split_codes<S>{random_source(2)}) <= 2);
}
