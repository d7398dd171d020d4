// Shared by all tests: picks Catch2 2 or 3, draws random matrices from literal seeds, derives tolerances.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <sluice/core/buffer.hpp>
#include <sluice/core/random.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

namespace sluice::test {

/// Standard normal numbers from a literal seed.
template <typename Scalar>
matrix<Scalar> random_matrix(index_t rows, index_t cols, std::uint64_t seed) {
  const random_source random(seed);
  matrix<Scalar> m(rows, cols);
  for (index_t i = 0; i < m.size(); ++i) m.data()[i] = static_cast<Scalar>(random.normal(random_site::user_site, i));
  return m;
}

/// Bound on the rounding error of a sum of `length` products of numbers of this magnitude: the error of a dot product of
/// length n is at most n eps |a| |b|; 8 covers the handful of further operations around it.
template <typename Scalar>
Scalar bound(index_t length, Scalar magnitude = 1) {
  return 8 * static_cast<Scalar>(std::max<index_t>(length, 1)) * std::numeric_limits<Scalar>::epsilon() * std::max(magnitude, Scalar(1));
}

template <typename A, typename B>
auto largest_difference(const A& a, const B& b) {
  using scalar = typename A::Scalar;
  return a.size() == 0 ? scalar(0) : (a - b).cwiseAbs().maxCoeff();
}

/// Equal bit for bit, NaN included.
template <typename A, typename B>
bool same_bits(const A& a, const B& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return false;
  for (index_t r = 0; r < a.rows(); ++r)
    for (index_t c = 0; c < a.cols(); ++c) {
      const auto u = a(r, c);
      const auto v = b(r, c);
      if (std::memcmp(&u, &v, sizeof u) != 0) return false;
    }
  return true;
}

/// Runs tasks on `count` threads, in an order that differs from the serial one: the k-th thread takes tasks k, k + count, ...
/// from the highest down.
class shuffled_threads {
public:
  explicit shuffled_threads(int count) : count_(count) {}

  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    std::vector<std::thread> threads;
    for (int k = 0; k < count_; ++k)
      threads.emplace_back([&, k] {
        for (index_t task = n - 1; task >= 0; --task)
          if (task % count_ == k) body(task);
      });
    for (std::thread& thread : threads) thread.join();
  }
  /// The least: tests are small.
  index_t smallest_work() const noexcept { return 0; }

private:
  int count_;
};

template <typename Scalar>
std::span<Scalar> span_of(matrix<Scalar>& m) {
  return {m.data(), static_cast<std::size_t>(m.size())};
}
template <typename Scalar>
std::span<const Scalar> span_of(const matrix<Scalar>& m) {
  return {m.data(), static_cast<std::size_t>(m.size())};
}

/// The slope of f() along a number that f reads, by central differences; the number is afterwards what it was.
template <typename F>
double slope_at(double& number, F&& f, double step = 1e-6) {
  const double kept = number;
  number = kept + step;
  const double above = f();
  number = kept - step;
  const double below = f();
  number = kept;
  return (above - below) / (2 * step);
}

}  // namespace sluice::test
