#include <sluice/kernel/attention.hpp>

#include <sluice/exec/serial.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// q, k and v of some tokens in one matrix, and their gradients in another.
template <typename Scalar>
struct attention_problem {
  kernel::attention_shape shape;
  std::vector<kernel::attended_range> ranges;
  std::vector<std::uint8_t> mask;
  matrix<Scalar> qkv, out, dout, dqkv, log_sums;

  attention_problem(const kernel::attention_shape& s, index_t rows) : shape(s) {
    const index_t width = s.heads * s.key_width + s.key_heads * (s.key_width + s.value_width);
    qkv = test::random_matrix<Scalar>(rows, width, 11);
    dqkv = matrix<Scalar>::Constant(rows, width, quiet_nan<Scalar>());
    out = matrix<Scalar>::Constant(rows, s.heads * s.value_width, quiet_nan<Scalar>());
    dout = test::random_matrix<Scalar>(rows, out.cols(), 12);
    log_sums.resize(rows, s.heads);
    ranges = {{0, rows, 0, rows}};
  }
  index_t key_column() const { return shape.heads * shape.key_width; }
  index_t value_column() const { return key_column() + shape.key_heads * shape.key_width; }

  kernel::attention_inputs<Scalar> inputs() const {
    return {.shape = shape,
            .sequences = ranges,
            .q = {qkv.data(), qkv.cols(), shape.key_width},
            .k = {qkv.data() + key_column(), qkv.cols(), shape.key_width},
            .v = {qkv.data() + value_column(), qkv.cols(), shape.value_width},
            .key_mask = mask};
  }
  void forward(const executor_ref& executor = {}) {
    kernel::attention_memory<Scalar> memory;
    kernel::attention_forward<Scalar>(inputs(), {out.data(), out.cols(), shape.value_width}, log_sums.data(), memory,
                                      executor);
  }
  void backward(const executor_ref& executor = {}) {
    kernel::attention_memory<Scalar> memory;
    kernel::attention_backward<Scalar>(inputs(),
                                       {.out = {out.data(), out.cols(), shape.value_width},
                                        .dout = {dout.data(), dout.cols(), shape.value_width},
                                        .log_sums = log_sums.data(),
                                        .dq = {dqkv.data(), dqkv.cols(), shape.key_width},
                                        .dk = {dqkv.data() + key_column(), dqkv.cols(), shape.key_width},
                                        .dv = {dqkv.data() + value_column(), dqkv.cols(), shape.value_width}},
                                       memory, executor);
  }
};

/// The same, query by query in double, with all weights of a query at once. Loops over plain numbers: the tests are not
/// always optimised.
struct attention_by_hand {
  matrix<double> out, dqkv;

  template <typename Scalar>
  explicit attention_by_hand(const attention_problem<Scalar>& p)
      : out(matrix<double>::Zero(p.out.rows(), p.out.cols())), dqkv(matrix<double>::Zero(p.qkv.rows(), p.qkv.cols())) {
    const auto& s = p.shape;
    const matrix<double> qkv = p.qkv.template cast<double>(), dout = p.dout.template cast<double>();
    const double scale = s.scale == 0 ? 1 / std::sqrt(double(s.key_width)) : s.scale;
    for (const auto& r : p.ranges)
      for (index_t h = 0; h < s.heads; ++h) {
        const index_t g = s.sharing == key_sharing::adjacent ? h / (s.heads / s.key_heads) : h % s.key_heads;
        const index_t first_k = r.first_key * qkv.cols() + p.key_column() + g * s.key_width,
                      first_v = r.first_key * qkv.cols() + p.value_column() + g * s.value_width;
        const auto key = [&](auto& numbers, index_t j) { return numbers.data() + first_k + j * qkv.cols(); };
        const auto value = [&](auto& numbers, index_t j) { return numbers.data() + first_v + j * qkv.cols(); };
        for (index_t i = 0; i < r.queries; ++i) {
          const index_t row = r.first_query + i, query = row * qkv.cols() + h * s.key_width,
                        output = row * out.cols() + h * s.value_width;
          const double *q = qkv.data() + query, *d = dout.data() + output;
          const auto sees = [&](index_t j) {
            return (p.mask.empty() || p.mask[as_size(r.first_key + j)] != 0) &&
                   (!s.causal || j <= r.keys - r.queries + i);
          };
          std::vector<double> a(as_size(r.keys)), da(as_size(r.keys));
          double sum = 0, mean = 0, top = -1e300;
          for (index_t j = 0; j < r.keys; ++j) {
            a[as_size(j)] = scale * product(q, key(qkv, j), s.key_width);
            da[as_size(j)] = product(d, value(qkv, j), s.value_width);
            if (sees(j)) top = std::max(top, a[as_size(j)]);
          }
          for (index_t j = 0; j < r.keys; ++j) sum += a[as_size(j)] = sees(j) ? std::exp(a[as_size(j)] - top) : 0;
          if (sum == 0) continue;
          for (index_t j = 0; j < r.keys; ++j) mean += (a[as_size(j)] /= sum) * da[as_size(j)];
          for (index_t j = 0; j < r.keys; ++j) {
            const double weight = a[as_size(j)], score = scale * weight * (da[as_size(j)] - mean);
            add(weight, value(qkv, j), out.data() + output, s.value_width);
            add(weight, d, value(dqkv, j), s.value_width);
            add(score, q, key(dqkv, j), s.key_width);
            add(score, key(qkv, j), dqkv.data() + query, s.key_width);
          }
        }
      }
  }

private:
  static double product(const double* a, const double* b, index_t n) {
    double sum = 0;
    for (index_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
  }
  static void add(double factor, const double* a, double* to, index_t n) {
    for (index_t i = 0; i < n; ++i) to[i] += factor * a[i];
  }
};

template <typename Scalar>
void check_attention(attention_problem<Scalar> p) {
  const attention_by_hand expected(p);
  p.forward();
  p.backward();
  // A score is a sum of key_width products of normal numbers and in an exponent; results are sums over the keys.
  const Scalar tolerance = test::bound<Scalar>(p.shape.key_width + p.qkv.rows(), 8);
  CHECK(test::largest_difference(p.out, matrix<Scalar>(expected.out.cast<Scalar>())) < tolerance);
  CHECK(test::largest_difference(p.dqkv, matrix<Scalar>(expected.dqkv.cast<Scalar>())) < tolerance);
}

}  // namespace

TEMPLATE_TEST_CASE("attention: blocks give what all weights at once give, forward and backward", "[kernel][attention]",
                   float, double) {
  for (const index_t rows : {1, 2, 63, 64, 65, 200})
    for (const bool causal : {true, false})
      for (const index_t width : {1, 7, 16, 21}) {
        CAPTURE(rows, causal, width);
        check_attention<TestType>(
            {{.heads = 2, .key_heads = 2, .key_width = width, .value_width = width + 2, .causal = causal}, rows});
      }
}

TEST_CASE("attention: several heads share one of keys, in both orders", "[kernel][attention]") {
  for (const auto sharing : {key_sharing::adjacent, key_sharing::repeated})
    for (const index_t key_heads : {1, 2, 3, 6}) {
      CAPTURE(key_heads);
      check_attention<double>(
          {{.heads = 6, .key_heads = key_heads, .key_width = 5, .value_width = 9, .scale = 0.3, .sharing = sharing},
           83});
    }
}

TEST_CASE("attention: sequences keep to themselves and hidden keys are seen by nobody", "[kernel][attention]") {
  for (const bool causal : {true, false}) {
    attention_problem<double> p({.heads = 4, .key_heads = 2, .key_width = 6, .value_width = 5, .causal = causal}, 120);
    p.ranges = {{0, 3, 0, 3}, {3, 0, 3, 0}, {3, 100, 3, 100}, {103, 17, 103, 17}};
    p.mask.assign(120, 1);
    for (index_t t = 0; t < 120; t += 4) p.mask[as_size(t)] = 0;  // the first query of a sequence sees no key, then
    std::fill(p.mask.begin() + 103, p.mask.end(), std::uint8_t(0));
    check_attention(p);
    p.forward();
    p.backward();
    CHECK(p.out.bottomRows(17).isZero(0));
    CHECK(p.dqkv.bottomRows(17).isZero(0));
    CHECK((causal ? p.out.row(0).isZero(0) : !p.out.row(0).isZero(0)));
    CHECK(p.dqkv.row(4).rightCols(22).isZero(0));
  }
}

TEST_CASE("attention: where there are fewer queries than keys, queries are the last positions", "[kernel][attention]") {
  for (const bool causal : {true, false}) {
    attention_problem<double> p({.heads = 2, .key_heads = 1, .key_width = 6, .value_width = 5, .causal = causal}, 150);
    p.ranges = {
        {0, 70, 30, 100}, {70, 1, 0, 30}, {71, 2, 130, 1}};  // and of two queries over one key the first sees none
    p.dout.bottomRows(77).setZero();
    p.forward();
    p.backward();
    const attention_by_hand expected(p);
    CHECK(test::largest_difference(matrix<double>(p.out.topRows(73)), matrix<double>(expected.out.topRows(73))) <
          1e-13);
    CHECK(test::largest_difference(matrix<double>(p.dqkv.topRows(73).leftCols(12)),
                                   matrix<double>(expected.dqkv.topRows(73).leftCols(12))) < 1e-13);
    CHECK(test::largest_difference(matrix<double>(p.dqkv.topRows(131).rightCols(11)),
                                   matrix<double>(expected.dqkv.topRows(131).rightCols(11))) < 1e-12);
    CHECK((!causal || p.out.row(71).isZero(0)));
  }
}

TEST_CASE("attention: keys in several shares, and any number of threads, give the same", "[kernel][attention]") {
  attention_problem<float> p({.heads = 1, .key_heads = 1, .key_width = 3, .value_width = 2}, 1100);  // of 512 keys
  p.ranges = {{0, 1030, 0, 1030}, {1030, 70, 1030, 70}};
  check_attention(p);
  p.forward();
  p.backward();
  for (const int threads : {2, 8}) {
    attention_problem<float> other = p;
    test::shuffled_threads executor(threads);
    other.forward(executor);
    other.backward(executor);
    CHECK(test::same_bits(other.out, p.out));
    CHECK(test::same_bits(other.log_sums, p.log_sums));
    CHECK(test::same_bits(other.dqkv, p.dqkv));
  }
}

TEST_CASE("attention: a query's bits do not depend on the queries beside it", "[kernel][attention]") {
  attention_problem<float> p({.heads = 4, .key_heads = 2, .key_width = 9, .value_width = 7}, 150);
  p.forward();
  const matrix<float> whole = p.out;
  for (const index_t keys : {1, 2, 64, 65, 150}) {
    p.ranges = {{keys - 1, 1, 0, keys}};
    p.out.setZero();
    p.forward();
    CHECK(test::same_bits(p.out.row(keys - 1), whole.row(keys - 1)));
  }
}

TEST_CASE("attention: large scores are weights of one key", "[kernel][attention]") {
  attention_problem<float> p({.heads = 1, .key_heads = 1, .key_width = 1, .value_width = 1, .scale = 1}, 3);
  p.qkv << 1e18F, 0, 5, 1e18F, 1e18F, 6, -1e18F, 2e18F, 7;
  p.dout.setOnes();
  p.forward();
  p.backward();
  CHECK(p.out == (matrix<float>(3, 1) << 5, 6, 5).finished());  // scores 0; 0, 1e36; 0, -1e36, -2e36
  CHECK(all_finite(p.dqkv.data(), p.dqkv.size()));
}

TEST_CASE("attention: rotary positions turn pairs, and scores see distances alone", "[kernel][attention]") {
  kernel::rotary_table<double> table;
  table.prepare({.width = 4, .base = 100}, 40);
  Eigen::RowVectorXd x(5);
  x << 1, 2, 3, 4, 5;
  Eigen::RowVectorXd turned = x;
  table.rotate(turned.data(), 1, 5, 7, kernel::turn::forward);
  for (index_t i = 0; i < 2; ++i) {
    const double angle = i == 0 ? 7 : 0.7;
    CHECK(turned[i] == Approx(x[i] * std::cos(angle) - x[i + 2] * std::sin(angle)));
    CHECK(turned[i + 2] == Approx(x[i + 2] * std::cos(angle) + x[i] * std::sin(angle)));
  }
  CHECK(turned[4] == 5);
  table.rotate(turned.data(), 1, 5, 7, kernel::turn::back);
  CHECK((turned - x).cwiseAbs().maxCoeff() < 1e-14);
  const auto score = [&](index_t query, index_t key) {
    Eigen::RowVectorXd q = x, k = x.reverse();
    table.rotate(q.data(), 1, 5, query, kernel::turn::forward);
    table.rotate(k.data(), 1, 5, key, kernel::turn::forward);
    return q.dot(k);
  };
  CHECK(score(9, 4) == Approx(score(35, 30)));
  CHECK_THROWS_AS(kernel::check_rotary({.width = 3}, 8), std::invalid_argument);
  CHECK_THROWS_AS(kernel::check_rotary({.width = 10}, 8), std::invalid_argument);
  CHECK_THROWS_AS(kernel::check_rotary({.width = 4, .base = 0}, 8), std::invalid_argument);
}

TEST_CASE("attention: heads that do not fit each other throw", "[kernel][attention]") {
  CHECK_THROWS_AS(kernel::check_heads({.heads = 3, .key_heads = 2}), std::invalid_argument);
  CHECK_THROWS_AS(kernel::check_heads({.heads = 0, .key_heads = 1}), std::invalid_argument);
  CHECK_THROWS_AS(kernel::check_heads({.key_width = 0}), std::invalid_argument);
  CHECK_THROWS_AS(kernel::check_heads({.scale = -1}), std::invalid_argument);
}
