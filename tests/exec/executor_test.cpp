#include <sluice/core/executor.hpp>
#include <sluice/exec/openmp.hpp>
#include <sluice/exec/serial.hpp>
#if defined(SLUICE_TEST_WITH_TBB)
#include <sluice/exec/tbb.hpp>
#endif
#include <sluice/exec/thread_pool.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdexcept>

using namespace sluice;

namespace {

/// A pool as a user would bring it: threads that live on, tasks handed out one by one to whoever is free.
class users_pool {
public:
  explicit users_pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~users_pool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  index_t smallest_work() const { return 0; }
  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    std::unique_lock lock(mutex_);
    body_ = [](void* object, index_t task) { (*static_cast<std::remove_reference_t<Body>*>(object))(task); };
    object_ = &body;
    next_ = 0, end_ = n, left_ = n;
    wake_.notify_all();
    done_.wait(lock, [&] { return left_ == 0; });
  }

private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || next_ < end_; });
      if (stopping_) return;
      const index_t task = next_++;
      lock.unlock();
      body_(object_, task);
      lock.lock();
      if (--left_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  void (*body_)(void*, index_t) = nullptr;
  void* object_ = nullptr;
  index_t next_ = 0, end_ = 0, left_ = 0;
  bool stopping_ = false;
};

static_assert(Executor<users_pool>);

/// An executor that is given all there is, however little: tests are small.
template <typename E>
class eager {
public:
  explicit eager(int threads) : executor_(threads) {}
  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    executor_.parallel_for(n, body);
  }
  index_t concurrency() const { return executor_.concurrency(); }
  index_t smallest_work() const { return 0; }

private:
  E executor_;
};

/// Calls f(name, executor) for every executor there is, with 1, 2, 3 and 8 threads.
template <typename F>
void with_every_executor(F&& f) {
  serial_executor serial;
  f("serial", executor_ref(serial));
  for (const int threads : {1, 2, 3, 8}) {
    eager<openmp_executor> openmp(threads);
    f("OpenMP", executor_ref(openmp));
    eager<thread_pool> pool(threads);
    f("sluice's pool", executor_ref(pool));
    users_pool users(threads);
    f("a user's pool", executor_ref(users));
    test::shuffled_threads shuffled(threads);
    f("threads in another order", executor_ref(shuffled));
#if defined(SLUICE_TEST_WITH_TBB)
    eager<tbb_executor> tbb(threads);
    f("oneTBB", executor_ref(tbb));
#endif
  }
}

}  // namespace

TEST_CASE("executor: every task runs exactly once", "[exec]") {
  with_every_executor([](const char* name, executor_ref executor) {
    CAPTURE(name);
    for (const index_t n : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(n));
      executor.parallel_for(n, [&](index_t task) { ++runs[static_cast<std::size_t>(task)]; });
      CHECK(std::all_of(runs.begin(), runs.end(), [](const auto& count) { return count == 1; }));
    }
  });
}

TEST_CASE("executor: blocks cover everything once, with borders that depend on sizes only", "[exec]") {
  with_every_executor([](const char* name, executor_ref executor) {
    CAPTURE(name);
    for (const index_t n : {0, 1, 31, 32, 33, 1000})
      for (const index_t block : {1, 32, 2000}) {
        std::vector<std::atomic<int>> runs(static_cast<std::size_t>(n));
        std::atomic<bool> borders_fit{true};
        executor.parallel_blocks(n, block, executor_ref::smallest_work, [&](index_t begin, index_t end) {
          if (begin % block != 0 || (end != n && end != begin + block)) borders_fit = false;
          for (index_t i = begin; i < end; ++i) ++runs[static_cast<std::size_t>(i)];
        });
        CHECK(borders_fit);
        CHECK(std::all_of(runs.begin(), runs.end(), [](const auto& count) { return count == 1; }));
      }
  });
}

TEST_CASE("executor: without one, tasks run in order in the calling thread", "[exec]") {
  std::vector<index_t> order;
  executor_ref().parallel_for(4, [&](index_t task) { order.push_back(task); });
  CHECK(order == std::vector<index_t>{0, 1, 2, 3});
}

TEST_CASE("executor: one task does not wake the threads", "[exec]") {
  struct counting {
    int calls = 0;
    void parallel_for(index_t n, detail::task_ref body) {
      ++calls;
      for (index_t i = 0; i < n; ++i) body(i);
    }
  } executor;
  int ran = 0;
  executor_ref(executor).parallel_for(1, [&](index_t) { ++ran; });
  CHECK(executor.calls == 0);
  executor_ref(executor).parallel_for(2, [&](index_t) { ++ran; });
  CHECK(executor.calls == 1);
  CHECK(ran == 3);
}

TEST_CASE("executor: small work stays on the caller", "[exec]") {
  struct counting {
    int calls = 0;
    void parallel_for(index_t n, detail::task_ref body) {
      ++calls;
      for (index_t i = 0; i < n; ++i) body(i);
    }
  };
  // Tokens enough for several blocks of rows, but a few microseconds of work in every stage; then with wide experts.
  for (const index_t hidden : {16, 4096}) {
    CAPTURE(hidden);
    moe_layer layer{top_k_router<float>{8, 4, {.top_k = 2}}, expert_bank<swiglu<float>>{4, 8, hidden}};
    initialize(layer, 3);
    const matrix<float> x = test::random_matrix<float>(100, 8, 4);
    matrix<float> y(100, 8), dx(100, 8);
    decltype(layer)::tape tape;
    counting executor;
    routing_context<float> context;
    context.training = true;
    context.executor = executor;
    layer.forward(x, y, tape, context);
    layer.backward(y, dx, tape);
    CHECK((executor.calls > 0) == (hidden == 4096));
  }
  counting executor;
  const executor_ref any = executor;
  const index_t some = executor_ref::smallest_work / 10;
  any.parallel_blocks(9, 1, some, [](index_t, index_t) {});
  CHECK(executor.calls == 0);
  any.parallel_blocks(11, 1, some, [](index_t, index_t) {});
  CHECK(executor.calls == 1);
}

TEST_CASE("executor: each of sluice's passes a task's exception on and works afterwards", "[exec]") {
  const auto check = [](const char* name, auto& executor) {
    CAPTURE(name);
    for (const index_t thrower : {0, 13, 49}) {
      CAPTURE(thrower);
      std::atomic<int> after{0};
      CHECK_THROWS_WITH(executor_ref(executor).parallel_for(50,
                                                            [&](index_t task) {
                                                              if (task == thrower) throw std::runtime_error("thrown");
                                                            }),
                        "thrown");
      executor_ref(executor).parallel_for(50, [&](index_t) { ++after; });
      CHECK(after == 50);
    }
  };
  serial_executor serial;
  check("serial", serial);
  thread_pool pool(3);
  check("sluice's pool", pool);
  openmp_executor openmp(3);
  check("OpenMP", openmp);
#if defined(SLUICE_TEST_WITH_TBB)
  tbb_executor tbb(3);
  check("oneTBB", tbb);
#endif
}

TEMPLATE_TEST_CASE("executor: a training step gives equal bits with every executor and thread count",
                   "[exec][determinism]", float, double) {
  using scalar = TestType;
  const auto check = [](auto layer) {
    initialize(layer, 3);
    const index_t tokens = 131;
    const matrix<scalar> x = test::random_matrix<scalar>(tokens, 24, 4);
    const matrix<scalar> dy = test::random_matrix<scalar>(tokens, 24, 5);
    const auto run = [&](executor_ref executor) {
      typename decltype(layer)::tape tape;
      std::vector<matrix<scalar>> results(2, matrix<scalar>(tokens, 24));
      routing_context<scalar> context;
      context.training = true;
      context.executor = executor;
      zero_gradients(layer);
      layer.forward(x, results[0], tape, context);
      layer.backward(dy, results[1], tape);
      for_each_parameter(layer, [&](const std::string&, parameter<scalar>& p) { results.push_back(p.gradient_matrix()); });
      return results;
    };
    const auto serial = run({});
    with_every_executor([&](const char* name, executor_ref executor) {
      CAPTURE(name);
      const auto results = run(executor);
      REQUIRE(results.size() == serial.size());
      for (std::size_t i = 0; i < results.size(); ++i) CHECK(test::same_bits(results[i], serial[i]));
    });
  };
  check(moe_layer{top_k_router<scalar>{24, 7, {.top_k = 3}}, expert_bank<swiglu<scalar>>{7, 24, 37}});
  check(moe_layer{soft_moe_router<scalar>{24, 5}, expert_bank<swiglu<scalar>>{5, 24, 16}});
}

TEST_CASE("executors: fewer than no threads are refused", "[exec]") {
  CHECK_THROWS_WITH(openmp_executor(-1), "sluice: openmp_executor needs threads >= 0, not -1");
#if defined(SLUICE_TEST_WITH_TBB)
  CHECK_THROWS_WITH(tbb_executor(-2), "sluice: tbb_executor needs threads >= 0, not -2");
#endif
}
