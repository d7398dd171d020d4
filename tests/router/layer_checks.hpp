// Checks of a whole layer that hold for every router family: exact gradients, the readable reference, equal bits.
#pragma once

#include <sluice/layer/moe_layer.hpp>
#include <sluice/reference/naive_moe.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"

#include <string>
#include <vector>

namespace sluice::test {

inline constexpr double printed_numbers = 5.1e-7;  // examples are printed with six decimals

inline routing_context<double> in_training(std::uint64_t seed = 1) {
  routing_context<double> context;
  context.training = true;
  context.random = random_source(seed);
  return context;
}

/// The gate's or any other parameter filled with numbers from a literal seed.
template <typename Scalar>
void fill_normal(parameter<Scalar>& p, std::uint64_t seed, double deviation = 1) {
  const matrix<Scalar> numbers = random_matrix<Scalar>(1, p.size(), seed);
  for (index_t i = 0; i < p.size(); ++i) p.data()[i] = static_cast<Scalar>(deviation) * numbers(0, i);
}

/// Gradients of sum(y * dy) + losses for all parameters and x against central differences. With h = 1e-6 and sums of
/// some hundred terms of order 1 the differences are good to about 1e-8, hence 1e-6 relative to max(0.01, |gradient|).
template <typename Layer>
gradient_report layer_gradients(Layer& layer, matrix<double> x, const routing_context<double>& context,
                                std::uint64_t seed = 5) {
  const matrix<double> dy = random_matrix<double>(x.rows(), layer.outputs(), seed);
  matrix<double> y(x.rows(), layer.outputs());
  matrix<double> dx(x.rows(), layer.inputs());
  zero_gradients(layer);
  typename Layer::tape tape;
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  typename Layer::tape other;
  return check_gradients(layer, {{"x", span_of(x), span_of(std::as_const(dx))}}, [&] {
    layer.forward(x, y, other, context);
    return (y.array() * dy.array()).sum() + other.loss();
  });
}
inline constexpr double gradient_tolerance = 1e-6;

/// All numbers that a training step gives: y, dx, losses, gradients.
template <typename Layer>
std::vector<typename Layer::scalar> training_numbers(Layer& layer, const matrix<typename Layer::scalar>& x,
                                                     const matrix<typename Layer::scalar>& dy,
                                                     const routing_context<typename Layer::scalar>& context) {
  using scalar = typename Layer::scalar;
  zero_gradients(layer);
  typename Layer::tape tape;
  matrix<scalar> y(x.rows(), layer.outputs());
  matrix<scalar> dx(x.rows(), layer.inputs());
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  std::vector<scalar> numbers(y.data(), y.data() + y.size());
  numbers.insert(numbers.end(), dx.data(), dx.data() + dx.size());
  numbers.push_back(tape.loss());
  for_each_parameter(layer, [&](const std::string&, parameter<scalar>& p) {
    numbers.insert(numbers.end(), p.gradient().begin(), p.gradient().end());
  });
  return numbers;
}

/// Equal bits for 1, 2, 3 and 8 threads, and no NaN among them.
template <typename Layer>
void check_equal_bits(Layer& layer, index_t tokens, routing_context<typename Layer::scalar> context) {
  using scalar = typename Layer::scalar;
  const matrix<scalar> x = random_matrix<scalar>(tokens, layer.inputs(), 71);
  const matrix<scalar> dy = random_matrix<scalar>(tokens, layer.outputs(), 72);
  const auto serial = training_numbers(layer, x, dy, context);
  for (const scalar v : serial) REQUIRE(std::isfinite(v));
  for (const int threads : {1, 2, 3, 8}) {
    CAPTURE(threads);
    shuffled_threads pool(threads);
    context.executor = pool;
    const auto parallel = training_numbers(layer, x, dy, context);
    REQUIRE(parallel.size() == serial.size());
    CHECK(std::memcmp(parallel.data(), serial.data(), serial.size() * sizeof(scalar)) == 0);
  }
}

/// The largest |y| and the largest difference of y from the readable reference on the same plan.
template <typename Layer>
struct reference_difference {
  typename Layer::scalar difference;
  typename Layer::scalar magnitude;
};
template <typename Layer>
reference_difference<Layer> difference_from_reference(const Layer& layer, const matrix<typename Layer::scalar>& x,
                                                      const routing_context<typename Layer::scalar>& context = {}) {
  using scalar = typename Layer::scalar;
  typename Layer::workspace workspace;
  matrix<scalar> y(x.rows(), layer.outputs());
  layer.forward(x, y, workspace, context);
  const auto r = reference::forward(workspace.plan, layer.bank(), x);
  const scalar magnitude = y.size() == 0 ? scalar(0) : r.y.cwiseAbs().maxCoeff();
  return {largest_difference(y, r.y), magnitude};
}

/// The rows of a matrix in another order: row t of the result is row order[t].
template <typename Scalar>
matrix<Scalar> permuted(const matrix<Scalar>& m, const std::vector<index_t>& order) {
  matrix<Scalar> out(m.rows(), m.cols());
  for (index_t t = 0; t < m.rows(); ++t) out.row(t) = m.row(order[static_cast<std::size_t>(t)]);
  return out;
}
inline std::vector<index_t> some_order(
    index_t count) {  // t -> 5 t + 2 mod count: a permutation where 5 does not divide count
  std::vector<index_t> order;
  for (index_t t = 0; t < count; ++t) order.push_back((5 * t + 2) % count);
  return order;
}

}  // namespace sluice::test
