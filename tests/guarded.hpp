// Arrays beside forbidden memory: reading or writing one number past either end stops the test with a fault, with any
// compiler.
#pragma once

#include <sluice/core/types.hpp>

#include <algorithm>
#include <cstddef>
#include <new>
#include <utility>
#include <vector>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#include <unistd.h>
#define SLUICE_TEST_HAS_PAGES 1
#endif

namespace sluice::test {

enum class guard { before, behind };

/// `count` numbers with a forbidden page directly before or directly behind them. Where there are no pages to forbid,
/// an exactly sized block of the heap, which AddressSanitizer watches.
template <typename Scalar>
class guarded_array {
public:
  guarded_array(index_t count, guard where, Scalar value = 0) : count_(count) {
    const auto bytes = static_cast<std::size_t>(count) * sizeof(Scalar);
#if defined(SLUICE_TEST_HAS_PAGES)
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t body = (bytes + page - 1) / page * page;
    mapped_ = body + 2 * page;
    memory_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    auto* const start = static_cast<std::byte*>(memory_);
    mprotect(start, page, PROT_NONE);
    mprotect(start + page + body, page, PROT_NONE);
    data_ = reinterpret_cast<Scalar*>(where == guard::before ? start + page : start + page + body - bytes);
#else
    static_cast<void>(where);
    data_ = static_cast<Scalar*>(::operator new(bytes));
#endif
    std::fill_n(data_, count, value);
  }
  guarded_array(const guarded_array&) = delete;
  guarded_array& operator=(const guarded_array&) = delete;
  ~guarded_array() {
#if defined(SLUICE_TEST_HAS_PAGES)
    munmap(memory_, mapped_);
#else
    ::operator delete(data_);
#endif
  }

  Scalar* data() { return data_; }
  index_t size() const { return count_; }

private:
  Scalar* data_ = nullptr;
  index_t count_ = 0;
  void* memory_ = nullptr;
  std::size_t mapped_ = 0;
};

}  // namespace sluice::test
