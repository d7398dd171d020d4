/// What every layer promises of threads.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/parameter.hpp>

#include "../support.hpp"

#include <vector>

namespace sluice::test {

/// Compares bits of a training step's output, dx and gradients between the serial executor and 1, 2, 3 and 8 threads.
template <typename Layer>
void check_thread_counts(Layer& layer) {
  using scalar = typename Layer::scalar;
  const matrix<scalar> x = random_matrix<scalar>(131, layer.inputs(), 2);
  const matrix<scalar> dy = random_matrix<scalar>(131, layer.outputs(), 3);
  const auto step = [&](executor_ref executor) {
    routing_context<scalar> context;
    context.training = true;
    context.executor = executor;
    std::vector<matrix<scalar>> results{matrix<scalar>(131, layer.outputs()), matrix<scalar>(131, layer.inputs())};
    typename Layer::tape tape;
    zero_gradients(layer);
    layer.forward(x, results[0], tape, context);
    layer.backward(dy, results[1], tape);
    for_each_parameter(layer, [&](const std::string&, auto& p) { results.push_back(p.gradient_matrix()); });
    return results;
  };
  const auto serial = step({});
  for (const int threads : {1, 2, 3, 8}) {
    shuffled_threads pool(threads);
    const auto results = step(pool);
    for (std::size_t i = 0; i < serial.size(); ++i) CHECK(same_bits(results[i], serial[i]));
  }
}

}  // namespace sluice::test
