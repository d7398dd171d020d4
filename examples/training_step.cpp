// A training step in full: forward with losses and noise, backward, clipping, AdamW under a schedule, state updates.
#include <sluice/sluice.hpp>

#include <iostream>

using namespace sluice;

int main() {
  constexpr index_t T = 256, D = 16, E = 8, steps = 300;
  // Noisy top-2 routing over 8 experts; a balance loss and a z-loss keep the router honest.
  moe_layer layer{noisy_top_k_router<float>{D, E, {.top_k = 2}}, expert_bank<swiglu<float>>{E, D, 32},
                  switch_balance{.coefficient = 1e-2}, router_z_loss{.coefficient = 1e-3}};
  initialize(layer, /*seed=*/7);

  adamw<float> optimizer({.weight_decay = 1e-4});
  const cosine_schedule schedule{{.peak = 1e-2, .warmup = 20, .steps = steps}};
  thread_pool threads;  // equal bits with one thread or many

  const matrix<float> x = matrix<float>::Random(T, D);
  const matrix<float> target = x.array().abs().sqrt() * x.array().sign();
  matrix<float> y(T, D), dx(T, D);
  decltype(layer)::tape tape;
  float first = 0, error = 0;
  for (index_t step = 0; step < steps; ++step) {
    routing_context<float> context;
    context.training = true;
    context.random = random_source(/*seed=*/11, static_cast<std::uint64_t>(step));
    context.executor = threads;

    layer.forward(x, y, tape, context);                 // tape.loss(): the auxiliary losses
    const matrix<float> dy = 2 * (y - target) / float(T);
    layer.backward(dy, dx, tape);                       // gradients of the task and of the losses

    clip_gradient_norm(layer, 1.0);
    optimizer.set_learning_rate(schedule(step));
    optimizer.step(layer);
    zero_gradients(layer);

    error = (y - target).squaredNorm() / float(T);
    if (step == 0) first = error;
    if (step % 100 == 0 || step + 1 == steps)
      std::cout << "step " << step << ": squared error " << error << ", auxiliary losses " << tape.loss() << ", load CV "
                << tape.statistics.load_cv() << '\n';
    layer.after_step(tape);                             // updates state, clears the statistics
  }
  return error < first / 10 ? 0 : 1;
}
