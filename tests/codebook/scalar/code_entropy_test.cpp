#include <sluice/codebook/scalar/code_entropy.hpp>

#include <sluice/train/gradient_check.hpp>

#include "../../support.hpp"

using namespace sluice;

namespace {

/// All codes of all parts written out, in double.
template <typename Logarithm>
struct readable_entropy {
  double per_sample = 0, batch = 0;
  std::vector<double> q;

  readable_entropy(const matrix<double>& z, const std::vector<char>& counts, index_t part, double sharpness) {
    const index_t parts = z.cols() / part, codes = index_t(1) << part;
    q.assign(as_size(parts * codes), 0);
    double tokens = 0;
    for (const char c : counts) tokens += c;
    for (index_t t = 0; t < z.rows(); ++t) {
      if (!counts[as_size(t)]) continue;
      for (index_t g = 0; g < parts; ++g) {
        std::vector<double> e(as_size(codes));
        double sum = 0;
        for (index_t c = 0; c < codes; ++c) {
          double score = 0;
          for (index_t d = 0; d < part; ++d)  // the first number is the most significant bit
            score += z(t, g * part + d) * (c >> (part - 1 - d) & 1 ? 1 : -1);
          sum += e[as_size(c)] = std::exp(sharpness * score);
        }
        for (index_t c = 0; c < codes; ++c) {
          const double p = e[as_size(c)] / sum;
          per_sample -= p * Logarithm::value(p) / tokens;
          q[as_size(g * codes + c)] += p / tokens;
        }
      }
    }
    for (const double one : q) batch -= one * Logarithm::value(one);
  }
};

template <typename Logarithm>
void check_entropies(index_t part, index_t parts, double sharpness) {
  CAPTURE(part, parts, sharpness);
  const index_t T = 9;
  matrix<double> z = test::random_matrix<double>(T, part * parts, 11);
  std::vector<char> counts(as_size(T), 1);
  counts[3] = 0;
  const readable_entropy<Logarithm> expected(z, counts, part, sharpness);
  code_entropy<double, Logarithm> entropy;
  const auto run = [&] { entropy.forward(z, [&](index_t t) { return counts[as_size(t)] != 0; }, part, sharpness, {}); };
  run();
  CHECK(entropy.per_sample == Approx(expected.per_sample).epsilon(1e-10));
  CHECK(entropy.batch == Approx(expected.batch).epsilon(1e-10));
  const auto& q = entropy.mean_probabilities();
  for (index_t i = 0; i < q.size(); ++i)
    CHECK(q.data()[i] == Approx(expected.q[as_size(i)]).epsilon(1e-10).margin(1e-14));

  matrix<double> dz = matrix<double>::Constant(T, z.cols(), 0.5);  // it is added to
  entropy.backward(0.7, -1.3, dz, {});
  dz.array() -= 0.5;
  CHECK(dz.row(3).isZero(0));
  struct {
  } nothing;
  const auto size = as_size(z.size());
  // Sums of thousands of numbers, good to some 1e-14: a longer step than usual.
  const auto report = check_gradients(nothing, {{"z", {z.data(), size}, {dz.data(), size}}},
                                      [&] {
                                        run();
                                        return 0.7 * entropy.per_sample - 1.3 * entropy.batch;
                                      },
                                      {.step = 1e-5, .most_entries = 40});
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

}  // namespace

TEST_CASE("code_entropy: values and gradients, from all codes written out", "[codebook][scalar][entropy][gradient]") {
  check_entropies<added_logarithm>(1, 5, 0.8);
  check_entropies<added_logarithm>(3, 2, 1.5);
  check_entropies<clamped_logarithm>(4, 1, 1.1);
  check_entropies<clamped_logarithm>(8, 1, 0.3);   // exactly one range of codes
  check_entropies<added_logarithm>(10, 2, 0.6);    // four
  check_entropies<clamped_logarithm>(11, 1, 2.0);  // many probabilities below the guard
}

TEST_CASE("code_entropy: one number at a time, per sample is the entropy of all codes", "[codebook][scalar][entropy]") {
  const matrix<double> z = test::random_matrix<double>(20, 8, 12);
  code_entropy<double, added_logarithm> whole, single;
  const auto all = [](index_t) { return true; };
  whole.forward(z, all, 8, 0.7, {});
  single.forward(z, all, 1, 0.7, {});
  CHECK(single.per_sample == Approx(whole.per_sample).epsilon(1e-4));  // guards apart
  CHECK(single.batch >= whole.batch);                                  // an approximation from above
  CHECK(whole.per_sample <= whole.batch);
  CHECK(whole.batch <= 8 * std::log(2.0));
}

TEST_CASE("code_entropy: sure tokens have none, undecided ones all of it", "[codebook][scalar][entropy]") {
  code_entropy<float, added_logarithm> entropy;
  const auto all = [](index_t) { return true; };
  matrix<float> z = matrix<float>::Zero(4, 3);
  entropy.forward(z, all, 3, 1, {});
  CHECK(entropy.per_sample == Approx(3 * std::log(2.0)).epsilon(1e-6));
  CHECK(entropy.batch == Approx(3 * std::log(2.0)).epsilon(1e-6));
  z << 1, 1, 1, 1, 1, -1, 1, -1, 1, -1, 1, 1;
  entropy.forward(z, all, 3, 1e4f, {});
  CHECK(std::abs(entropy.per_sample) < 1e-6);
  CHECK(entropy.batch == Approx(std::log(4.0)).epsilon(1e-6));
  entropy.forward(z, [](index_t) { return false; }, 3, 1, {});
  CHECK((entropy.per_sample == 0 && entropy.batch == 0));
  matrix<float> dz = matrix<float>::Zero(4, 3);
  entropy.backward(1, 1, dz, {});
  CHECK(dz.isZero(0));
}

TEST_CASE("code_entropy: equal bits for every thread count", "[codebook][scalar][entropy][threads]") {
  const matrix<float> z = test::random_matrix<float>(40, 20, 13);
  const auto run = [&](const executor_ref& executor) {
    code_entropy<float, clamped_logarithm> entropy;
    entropy.forward(
        z, [](index_t t) { return t % 7 != 2; }, 10, 0.4f, executor);
    matrix<float> dz = matrix<float>::Zero(40, 20);
    entropy.backward(1, -1, dz, executor);
    return std::tuple(entropy.per_sample, entropy.batch, dz);
  };
  const auto [per_sample, batch, dz] = run({});
  for (const int threads : {1, 2, 3, 8}) {
    test::shuffled_threads executor(threads);
    const auto [other_sample, other_batch, other_dz] = run(executor);
    CHECK((per_sample == other_sample && batch == other_batch && test::same_bits(dz, other_dz)));
  }
}

TEST_CASE("code_entropy: parts that cannot be summed are refused", "[codebook][scalar][entropy]") {
  using entropy = code_entropy<float, added_logarithm>;
  CHECK_NOTHROW(entropy::check_part(30, 60));
  CHECK_THROWS_AS(entropy::check_part(31, 62), std::invalid_argument);
  CHECK_THROWS_AS(entropy::check_part(0, 6), std::invalid_argument);
  CHECK_THROWS_AS(entropy::check_part(4, 6), std::invalid_argument);
}
