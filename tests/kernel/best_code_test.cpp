#include <sluice/kernel/best_code.hpp>

#include "../guarded.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
Scalar infinite(Scalar sign) {
  const auto bits = ordered_bits<Scalar>(sizeof(Scalar) == 4 ? 0x7f800000 : 0x7ff0000000000000);
  Scalar value;
  std::memcpy(&value, &bits, sizeof value);
  return std::copysign(value, sign);
}

/// A search and its answers.
template <typename Scalar>
struct code_case {
  matrix<Scalar> x, keys;
  std::vector<Scalar> offsets;  // empty: none
  std::vector<index_t> ids;
  std::vector<Scalar> scores;

  code_case(index_t rows, index_t codes, index_t width) : x(rows, width), keys(codes, width) {
    x.setZero();
    keys.setZero();
  }

  kernel::code_keys<Scalar> view() const {
    return {keys.data(), keys.cols(), offsets.empty() ? nullptr : offsets.data(), keys.rows(), keys.cols()};
  }
  void run() { run(0, x.rows()); }
  /// Rows first .. first + count on their own.
  void run(index_t first, index_t count) {
    ids.resize(as_size(x.rows()), -9);
    scores.resize(as_size(x.rows()));
    const kernel::code_blocking<Scalar> blocking{count, keys.rows(), keys.cols()};
    buffer<Scalar> memory(blocking.size(), quiet_nan<Scalar>());
    kernel::best_code(x.data() + first * x.cols(), x.cols(), count, view(), ids.data() + first, 1,
                      scores.data() + first, memory.data());
  }
};

/// Small whole numbers: every sum is exact in any order, and many scores are equal.
template <typename Scalar>
code_case<Scalar> case_of_whole_numbers(index_t rows, index_t codes, index_t width, bool offsets) {
  code_case<Scalar> c(rows, codes, width);
  const random_source random(7);
  index_t drawn = 0;
  const auto draw = [&] {
    return static_cast<Scalar>(std::floor(5 * random.uniform(random_site::user_site, drawn++)) - 2);
  };
  for (index_t i = 0; i < c.x.size(); ++i) c.x.data()[i] = draw();
  for (index_t i = 0; i < c.keys.size(); ++i) c.keys.data()[i] = draw();
  for (index_t i = 0; offsets && i < codes; ++i) c.offsets.push_back(draw());
  return c;
}

template <typename Scalar>
code_case<Scalar> case_of_normal_numbers(index_t rows, index_t codes, index_t width) {
  code_case<Scalar> c(rows, codes, width);
  c.x = test::random_matrix<Scalar>(rows, width, 1);
  c.keys = test::random_matrix<Scalar>(codes, width, 2);
  for (index_t i = 0; i < codes; ++i) c.offsets.push_back(-c.keys.row(i).squaredNorm() / 2);
  return c;
}

}  // namespace

TEMPLATE_TEST_CASE("best_code: the greatest score, the lowest code among equals", "[kernel][best_code]", float,
                   double) {
  using S = TestType;
  const index_t codes = GENERATE(1, 2, 15, 16, 17, 33, 70, 300), width = GENERATE(0, 1, 3, 16, 17, 40);
  const index_t rows = GENERATE(0, 1, 2, 6, 7, 14, 15, 29);
  const bool offsets = GENERATE(false, true);
  auto c = case_of_whole_numbers<S>(rows, codes, width, offsets);
  c.run();
  index_t wrong = 0;
  for (index_t t = 0; t < rows; ++t) {
    index_t best = no_code;
    S most = 0;
    for (index_t code = 0; code < codes; ++code) {
      S score = offsets ? c.offsets[as_size(code)] : S(0);
      for (index_t d = 0; d < width; ++d) score += c.x(t, d) * c.keys(code, d);
      if (best != no_code && score <= most) continue;
      best = code;
      most = score;
    }
    wrong += c.ids[as_size(t)] != best || c.scores[as_size(t)] != most;
  }
  CAPTURE(rows, codes, width, offsets);
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("best_code: more codes than a block", "[kernel][best_code]", float, double) {
  using S = TestType;
  const index_t rows = 40, width = 150;
  const index_t codes = 3 * kernel::code_blocking<S>{rows, 1 << 20, width}.panels() * kernel::simd_width<S> + 5;
  auto c = case_of_normal_numbers<S>(rows, codes, width);
  c.run();
  for (index_t t = 0; t < rows; ++t) {
    double most = -1e300;
    const auto score = [&](index_t code) {
      double sum = static_cast<double>(c.offsets[as_size(code)]);
      for (index_t d = 0; d < width; ++d) sum += static_cast<double>(c.x(t, d)) * static_cast<double>(c.keys(code, d));
      return sum;
    };
    for (index_t code = 0; code < codes; ++code) most = std::max(most, score(code));
    const double bound = static_cast<double>(test::bound<S>(width, S(16)));
    REQUIRE(c.ids[as_size(t)] >= 0);
    REQUIRE(c.ids[as_size(t)] < codes);
    CHECK(std::abs(score(c.ids[as_size(t)]) - most) <= bound);
    CHECK(std::abs(static_cast<double>(c.scores[as_size(t)]) - most) <= bound);
  }
}

TEMPLATE_TEST_CASE("best_code: a row has the same bits alone, among others, and with codes in parts",
                   "[kernel][best_code]", float, double) {
  using S = TestType;
  const index_t rows = 61, codes = 83, width = GENERATE(5, 64, 130);
  auto together = case_of_normal_numbers<S>(rows, codes, width);
  auto apart = together;
  together.run();
  const index_t some = GENERATE(1, 3, 13, 14, 20);
  for (index_t t = 0; t < rows; t += some) apart.run(t, std::min(some, rows - t));
  CHECK(together.ids == apart.ids);
  CHECK(std::memcmp(together.scores.data(), apart.scores.data(), as_size(rows) * sizeof(S)) == 0);

  // A score is one chain that starts from the offset.
  for (index_t t = 0; t < rows; ++t) {
    const index_t id = together.ids[as_size(t)];
    kernel::simd<S> sum(together.offsets[as_size(id)]);
    for (index_t d = 0; d < width; ++d)
      sum = kernel::multiply_add<S>(kernel::simd<S>(together.x(t, d)), kernel::simd<S>(together.keys(id, d)), sum);
    S lanes[as_size(kernel::simd_width<S>)];
    kernel::store<S>(lanes, sum);
    CHECK(std::memcmp(lanes, &together.scores[as_size(t)], sizeof(S)) == 0);
  }
}

TEMPLATE_TEST_CASE("best_code: codes that are equal, everywhere or twice, give the lowest", "[kernel][best_code][ties]",
                   float, double) {
  using S = TestType;
  code_case<S> same(20, 200, 9);
  same.x = test::random_matrix<S>(20, 9, 3);
  same.keys = matrix<S>::Ones(200, 9);
  same.run();
  for (const index_t id : same.ids) CHECK(id == 0);

  auto twice = case_of_normal_numbers<S>(50, 120, 7);
  for (index_t c = 60; c < 120; ++c) {
    twice.keys.row(c) = twice.keys.row(119 - c);
    twice.offsets[as_size(c)] = twice.offsets[as_size(119 - c)];
  }
  twice.run();
  for (const index_t id : twice.ids) CHECK(id < 60);

  code_case<S> zeros(3, 40, 4);  // -0 and +0 are equal
  zeros.offsets.assign(40, S(0));
  zeros.offsets[0] = -S(0);
  zeros.run();
  for (const index_t id : zeros.ids) CHECK(id == 0);
}

TEMPLATE_TEST_CASE("best_code: NaN in a row takes its code, NaN in a key or an offset takes the key",
                   "[kernel][best_code][nan]", float, double) {
  using S = TestType;
  const index_t rows = GENERATE(1, 5, 33);
  auto clean = case_of_normal_numbers<S>(rows, 45, 18);
  clean.run();
  auto dirty = clean;
  const index_t hit = rows / 2, code = clean.ids[0];
  dirty.x(hit, 17) = quiet_nan<S>();
  dirty.run();
  for (index_t t = 0; t < rows; ++t) {
    CHECK(dirty.ids[as_size(t)] == (t == hit ? no_code : clean.ids[as_size(t)]));
    if (t == hit)
      CHECK(is_nan(dirty.scores[as_size(t)]));
    else
      CHECK(std::memcmp(&dirty.scores[as_size(t)], &clean.scores[as_size(t)], sizeof(S)) == 0);
  }

  auto without = clean;
  without.keys(code, 3) = quiet_nan<S>();
  without.run();
  auto offset = clean;
  offset.offsets[as_size(code)] = quiet_nan<S>();
  offset.run();
  for (index_t t = 0; t < rows; ++t) {
    CHECK(without.ids[as_size(t)] != code);
    CHECK(without.ids[as_size(t)] != no_code);
  }
  CHECK(without.ids == offset.ids);

  auto nothing = clean;
  nothing.keys.setConstant(quiet_nan<S>());
  nothing.run();
  for (index_t t = 0; t < rows; ++t) {
    CHECK(nothing.ids[as_size(t)] == no_code);
    CHECK(is_nan(nothing.scores[as_size(t)]));
  }
}

TEMPLATE_TEST_CASE("best_code: infinities are scores", "[kernel][best_code]", float, double) {
  using S = TestType;
  const S high = infinite(S(1)), low = infinite(S(-1));
  const index_t rows = GENERATE(1, 20), codes = 50;
  const auto start = case_of_normal_numbers<S>(rows, codes, 6);

  auto shut = start;  // none is greater than -infinity: the lowest that is a number
  shut.offsets.assign(as_size(codes), low);
  shut.run();
  CHECK(shut.ids[0] == 0);
  CHECK(std::memcmp(&shut.scores[0], &low, sizeof(S)) == 0);
  for (index_t c = 0; c < 37; ++c) shut.offsets[as_size(c)] = quiet_nan<S>();
  shut.run();
  for (const index_t id : shut.ids) CHECK(id == 37);
  shut.offsets[44] = S(-1);
  shut.run();
  for (const index_t id : shut.ids) CHECK(id == 44);

  auto open = start;
  open.offsets[21] = open.offsets[40] = high;
  open.run();
  for (const index_t id : open.ids) CHECK(id == 21);

  auto far = start;  // infinity times zero is no score
  far.x.setConstant(S(0));
  far.keys(0, 2) = high;
  far.keys(1, 2) = low;
  far.run();
  for (const index_t id : far.ids) CHECK(id >= 2);

  auto row = start;
  row.x.setConstant(S(1));
  row.x(rows - 1, 0) = high;
  row.keys.col(0).setConstant(S(-1));
  row.keys(30, 0) = S(0);
  row.run();
  CHECK(row.ids[as_size(rows - 1)] == 0);  // -infinity but for code 30, whose score is no number
  row.keys(9, 0) = S(2);
  row.run();
  CHECK(row.ids[as_size(rows - 1)] == 9);
}

TEMPLATE_TEST_CASE("best_code: nothing is read or written past its arrays", "[kernel][best_code]", float, double) {
  using S = TestType;
  const test::guard where = GENERATE(test::guard::before, test::guard::behind);
  const index_t rows = GENERATE(1, 9, 31), codes = GENERATE(1, 19, 83), width = GENERATE(1, 7, 33);
  const kernel::code_blocking<S> blocking{rows, codes, width};
  test::guarded_array<S> x(rows * width, where, S(1)), keys(codes * width, where, S(2)), offsets(codes, where),
      scores(rows, where), memory(blocking.size(), where);
  test::guarded_array<index_t> ids(rows, where, -5);
  const kernel::code_keys<S> k{keys.data(), width, offsets.data(), codes, width};
  kernel::best_code(x.data(), width, rows, k, ids.data(), 1, scores.data(), memory.data());
  for (index_t t = 0; t < rows; ++t) {
    CHECK(ids.data()[t] == 0);
    CHECK(scores.data()[t] == static_cast<S>(2 * width));
  }
}

TEMPLATE_TEST_CASE("transpose: rows become columns", "[kernel][simd]", float, double) {
  using S = TestType;
  constexpr index_t width = kernel::simd_width<S>;
  S numbers[as_size(width)];
  kernel::simd<S> rows[as_size(width)];
  for (index_t i = 0; i < width; ++i) {
    for (index_t j = 0; j < width; ++j) numbers[j] = static_cast<S>(100 * i + j);
    rows[i] = kernel::load(numbers);
  }
  kernel::transpose<S>(rows);
  for (index_t i = 0; i < width; ++i) {
    kernel::store<S>(numbers, rows[i]);
    for (index_t j = 0; j < width; ++j) CHECK(numbers[j] == static_cast<S>(100 * j + i));
  }
}
