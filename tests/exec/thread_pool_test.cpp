#include <sluice/exec/thread_pool.hpp>

#include "../allocation.hpp"
#include "../support.hpp"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

using namespace sluice;

namespace {

/// Waits until `count` threads have come: tasks that meet here run on as many threads at the same time.
class meeting {
public:
  explicit meeting(int count) : missing_(count) {}
  void arrive_and_wait() {
    std::unique_lock lock(mutex_);
    if (--missing_ == 0) return all_here_.notify_all();
    all_here_.wait(lock, [&] { return missing_ == 0; });
  }

private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  int missing_;
};

}  // namespace

TEST_CASE("thread_pool: tasks run on all threads at the same time, the caller among them", "[exec][thread_pool]") {
  thread_pool pool(3);
  CHECK(pool.concurrency() == 3);
  for (int call = 0; call < 20; ++call) {
    // Awake or asleep, the threads come: without all three of them this would not return.
    if (call % 5 == 4) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    meeting meet(3);
    std::mutex mutex;
    std::set<std::thread::id> threads;
    pool.parallel_for(3, [&](index_t) {
      meet.arrive_and_wait();
      const std::lock_guard lock(mutex);
      threads.insert(std::this_thread::get_id());
    });
    CHECK(threads.size() == 3);
    CHECK(threads.count(std::this_thread::get_id()) == 1);
  }
}

TEST_CASE("thread_pool: some threads of a larger pool are enough for a few tasks", "[exec][thread_pool]") {
  thread_pool pool(6);
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  for (int call = 0; call < 20; ++call) {
    meeting meet(2);
    pool.parallel_for(2, [&](index_t) { meet.arrive_and_wait(); });
  }
}

TEST_CASE("thread_pool: sizes", "[exec][thread_pool]") {
  CHECK(thread_pool(1).concurrency() == 1);
  CHECK(thread_pool().concurrency() >= 1);
  CHECK(thread_pool(0).concurrency() == thread_pool().concurrency());
  CHECK_THROWS_WITH(thread_pool(-1), "sluice: thread_pool needs threads >= 0, not -1");
  for (int i = 0; i < 50; ++i) thread_pool pool(4);  // nobody asked it for anything

  thread_pool alone(1);
  std::vector<index_t> order;
  alone.parallel_for(4, [&](index_t task) { order.push_back(task); });
  CHECK(order == std::vector<index_t>{0, 1, 2, 3});
}

TEST_CASE("thread_pool: a call from inside a task runs where it is", "[exec][thread_pool]") {
  thread_pool pool(3);
  std::array<std::array<std::atomic<int>, 40>, 30> runs{};
  std::atomic<int> moved{0};
  pool.parallel_for(30, [&](index_t outer) {
    const auto here = std::this_thread::get_id();
    pool.parallel_for(40, [&](index_t inner) {
      ++runs[static_cast<std::size_t>(outer)][static_cast<std::size_t>(inner)];
      if (std::this_thread::get_id() != here) ++moved;
    });
  });
  CHECK(moved == 0);
  for (const auto& row : runs)
    for (const auto& count : row) REQUIRE(count == 1);
}

TEST_CASE("thread_pool: several threads call it at once", "[exec][thread_pool]") {
  thread_pool pool(3);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&, c] {
      for (index_t call = 0; call < 300; ++call) {
        const index_t n = 1 + (call * 7 + c) % 20;
        std::vector<index_t> squares(static_cast<std::size_t>(n), -1);
        pool.parallel_for(n, [&](index_t task) { squares[static_cast<std::size_t>(task)] = task * task; });
        for (index_t task = 0; task < n; ++task)
          if (squares[static_cast<std::size_t>(task)] != task * task) ++wrong;
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST_CASE("thread_pool: an exception ends the call after the tasks that had begun", "[exec][thread_pool]") {
  thread_pool pool(2);
  for (int call = 0; call < 50; ++call) {
    meeting meet(2);
    std::atomic<bool> other_done{false};
    std::atomic<int> begun{0};
    const auto body = [&](index_t task) {
      ++begun;
      if (task >= 2) return std::this_thread::sleep_for(std::chrono::microseconds(100));  // all of them: for minutes
      meet.arrive_and_wait();
      if (task == 0) throw std::runtime_error("thrown");
      other_done = true;
    };
    CHECK_THROWS_WITH(pool.parallel_for(1000000, body), "thrown");
    CHECK(other_done);
    CHECK(begun < 1000000);
  }
  CHECK_THROWS_WITH(pool.parallel_for(8, [](index_t) { throw std::runtime_error("all of them"); }), "all of them");
}

TEST_CASE("thread_pool: a call allocates nothing", "[exec][thread_pool][alloc]") {
  thread_pool pool(3);
  std::array<int, 100> numbers{};
  const long before = test::allocations.calls;
  for (int call = 0; call < 20; ++call)
    pool.parallel_for(100, [&](index_t task) { ++numbers[static_cast<std::size_t>(task)]; });
  CHECK(test::allocations.calls == before);
  CHECK(std::all_of(numbers.begin(), numbers.end(), [](int n) { return n == 20; }));
}
