/// Executor on oneTBB: tasks go to the arena of the calling thread, or to one of a given number of threads. Needs
/// oneTBB (CMake: sluice::tbb); not part of sluice.hpp.
///
/// oneTBB itself does the rest: calls from several threads and from inside a task share the arena's threads, and the
/// first exception of a body is rethrown by the call, with tasks that had not begun left out. It does not support fork:
/// a child process must not use an executor whose threads were left behind in its parent.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>

#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

namespace sluice::inline SLUICE_ISA {

class tbb_executor {
public:
  /// threads = 0 takes oneTBB's own number. Throws std::invalid_argument if it is below 0.
  explicit tbb_executor(int threads = 0) : arena_(threads > 0 ? threads : oneapi::tbb::task_arena::automatic) {
    if (threads < 0) throw_invalid("tbb_executor needs threads >= 0, not ", threads);
  }

  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    arena_.execute([&] { oneapi::tbb::parallel_for(index_t(0), n, [&](index_t task) { body(task); }); });
  }

  index_t concurrency() const { return arena_.max_concurrency(); }

private:
  oneapi::tbb::task_arena arena_;
};

static_assert(Executor<tbb_executor>);

}  // namespace sluice::inline SLUICE_ISA
