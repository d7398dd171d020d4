// What executors do in a child process, and what ends a process.
#include <sluice/exec/openmp.hpp>
#include <sluice/exec/process.hpp>
#include <sluice/exec/thread_pool.hpp>

#include "../support.hpp"

#if defined(__unix__) || defined(__APPLE__)

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <exception>
#include <optional>
#include <stdexcept>

using namespace sluice;

namespace {

/// What body() returns in a child process, which a signal ends if it waits for ever.
template <typename Body>
int exit_code_of_child(Body body) {
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(60);
    ::_exit(body());
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

template <typename E>
int tasks_run_by(E& executor) {
  std::atomic<int> runs{0};
  for (int call = 0; call < 3; ++call) executor_ref(executor).parallel_for(20, [&](index_t) { ++runs; });
  return runs;
}

}  // namespace

TEST_CASE("executor: a child process runs every task in the caller", "[exec][fork]") {
  std::optional<thread_pool> pool(3);
  openmp_executor openmp(3);
  CHECK(tasks_run_by(*pool) == 60);
  CHECK(tasks_run_by(openmp) == 60);
  const detail::process here;
  CHECK_FALSE(here.is_child());

  CHECK(exit_code_of_child([&] { return here.is_child() ? 0 : 1; }) == 0);
  CHECK(exit_code_of_child([&] {
          const int runs = tasks_run_by(*pool);
          pool.reset();  // whose threads are not there to be waited for
          return runs;
        }) == 60);
  CHECK(exit_code_of_child([&] {
          thread_pool own(1);
          return tasks_run_by(own) + tasks_run_by(openmp);
        }) == 120);

  CHECK(tasks_run_by(*pool) == 60);
  CHECK(tasks_run_by(openmp) == 60);
}

TEST_CASE("executor: a child process that was forked by a task of another thread is not stuck", "[exec][fork]") {
  thread_pool pool(2);
  std::atomic<bool> begun{false}, forked{false};
  std::thread caller([&] {
    pool.parallel_for(2, [&](index_t) {
      begun = true;
      while (!forked) std::this_thread::yield();
    });
  });
  while (!begun) std::this_thread::yield();
  CHECK(exit_code_of_child([&] { return tasks_run_by(pool); }) == 60);
  forked = true;
  caller.join();
}

TEST_CASE("executor: an exception that leaves a thread of a user's executor ends the program", "[exec]") {
  CHECK(exit_code_of_child([] {
          std::set_terminate([] { ::_exit(42); });
          test::shuffled_threads careless(1);
          careless.parallel_for(2, [](index_t) { throw std::runtime_error("thrown"); });
          return 0;
        }) == 42);
}

TEST_CASE("thread_pool: threads that wait take no processor time", "[exec][thread_pool]") {
  thread_pool pool(3);
  const auto processor_time = [] {
    ::rusage used;
    ::getrusage(RUSAGE_SELF, &used);
    return std::chrono::seconds(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           std::chrono::microseconds(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
  };
  CHECK(tasks_run_by(pool) == 60);
  const auto before = processor_time();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  CHECK(processor_time() - before < std::chrono::milliseconds(100));  // of 400 that two threads could take
}

#endif
