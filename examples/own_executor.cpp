// Bring your own thread pool: anything with parallel_for(n, body) is an executor. The results do not depend on it. An exception that
// leaves a thread ends the program: if your tasks throw, pass it on as sluice::thread_pool does.
#include <sluice/sluice.hpp>

#include <atomic>
#include <iostream>
#include <thread>
#include <vector>

// begin executor
struct my_pool {
  int threads;

  template <typename Body>
  void parallel_for(sluice::index_t n, Body&& body) {
    std::atomic<sluice::index_t> next{0};
    std::vector<std::jthread> workers;
    for (int i = 0; i < threads; ++i)
      workers.emplace_back([&] { for (sluice::index_t task; (task = next++) < n;) body(task); });
  }
};
// end executor

static_assert(sluice::explain_executor<my_pool>());

int main() {
  sluice::moe_layer layer{sluice::top_k_router<float>{64, 8}, sluice::expert_bank<sluice::swiglu<float>>{8, 64, 128}};
  sluice::initialize(layer, 7);
  const sluice::matrix<float> x = sluice::matrix<float>::Random(500, 64);
  sluice::matrix<float> serial(500, 64), threaded(500, 64);
  decltype(layer)::workspace workspace;
  layer.forward(x, serial, workspace);

  my_pool pool{4};
  sluice::routing_context<float> context;
  context.executor = pool;
  layer.forward(x, threaded, workspace, context);
  std::cout << "one thread and four give " << (serial == threaded ? "the same bits" : "different numbers") << '\n';
  return serial == threaded ? 0 : 1;
}
