// Step 4: what a call costs: warm memory, threads, sixteen-bit weights. The number of repetitions may be given.
#include <sluice/sluice.hpp>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <vector>

using namespace sluice;

/// Two blocks of 16 experts, 2 a token: 12 MB of weights.
auto make_model() {
  constexpr index_t D = 256, H = 256, E = 16;
  moe_layer mixture{top_k_router<float>{D, E, {.top_k = 2}}, expert_bank<swiglu<float>>{E, D, H}};
  const residual_layer block{normalized_layer{mixture, rms_norm<float>{D}}};
  return sequence{block, block};
}

/// The median time of a call, in microseconds a token.
template <typename Model>
double time_of(const Model& model, index_t tokens, int repetitions, executor_ref executor) {
  // begin call
  const matrix<float> x = matrix<float>::Random(tokens, model.inputs());
  matrix<float> y(tokens, model.outputs());
  typename Model::workspace workspace;  // one a thread that calls; it grows to the largest batch seen
  routing_context<float> context;
  context.executor = executor;          // threads within a call; left out: none
  model.forward(x, y, workspace, context);
  // end call
  std::vector<double> times;
  for (int i = 0; i < repetitions; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    model.forward(x, y, workspace, context);
    const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - begin;
    times.push_back(taken.count() / static_cast<double>(tokens));
  }
  std::nth_element(times.begin(), times.begin() + repetitions / 2, times.end());
  return times[static_cast<std::size_t>(repetitions / 2)];
}

int main(int argc, char** argv) {
  const int repetitions = argc > 1 ? std::atoi(argv[1]) : 51;
  if (repetitions < 1) {
    std::cerr << "usage: tutorial_4_speed [REPETITIONS]\n";
    return 2;
  }
  // begin config
  std::cout << to_string(config()) << "\n\n";
  // end config

  // begin rounded
  auto model = make_model();
  initialize(model, /*seed=*/1);
  const auto rounded = model.stored_as<bfloat16_storage>();  // weights of 16 bits, arithmetic in float
  thread_pool pool;                                          // as many threads as the machine runs at once
  // end rounded

  std::cout << "Microseconds a token, medians of " << repetitions << " calls:\n\n"
            << "tokens      float   +threads   bfloat16   +threads\n"
            << std::fixed << std::setprecision(1);
  for (const index_t tokens : {1, 8, 64}) {
    std::cout << std::setw(6) << tokens;
    for (const double time : {time_of(model, tokens, repetitions, {}), time_of(model, tokens, repetitions, pool),
                              time_of(rounded, tokens, repetitions, {}), time_of(rounded, tokens, repetitions, pool)})
      std::cout << std::setw(11) << time;
    std::cout << '\n';
  }
}
