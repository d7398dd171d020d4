/// Tasks that need memory to work in: as many threads as run them have a row of it each.
///
///   run_scratch_tasks(tasks, numbers, work, memory.scratch, executor, [&](index_t task, Scalar* scratch) { ... });
///
/// The next task goes to the thread that is free first, so tasks may differ in work; what they compute may depend on
/// the task alone, and then bits are equal for any number of threads. `work` is that of all tasks (core/executor.hpp).
/// A row begins on a cache line, holds what an earlier task left, and has at least so many numbers. Warm calls allocate
/// nothing.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>

#include <algorithm>
#include <atomic>

namespace sluice::inline SLUICE_ISA::kernel {

template <typename Scalar, typename Body>
void run_scratch_tasks(index_t tasks, index_t numbers, index_t work, matrix_buffer<Scalar>& scratch,
                       const executor_ref& executor, Body&& body) {
  constexpr index_t line = 64 / sizeof(Scalar);
  const index_t row = (numbers + line - 1) / line * line;
  const executor_ref threads = executor.for_work(work);
  const index_t workers = (std::min)(threads.concurrency(), tasks);
  scratch.reserve(executor.concurrency(), row);
  scratch.resize(workers, row);
  std::atomic<index_t> next{0};
  threads.parallel_for(workers, [&](index_t worker) {
    for (index_t task = next++; task < tasks; task = next++) body(task, scratch.row(worker));
  });
}

}  // namespace sluice::inline SLUICE_ISA::kernel
