// Replaces operator new for one test executable: counts allocations, makes the n-th one fail, and sees leaks. Include
// it in exactly one source of an executable.
//
// Eigen's own temporaries come from malloc, not from operator new. Where glibc allows it, malloc is counted as well.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLUICE_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SLUICE_TEST_SANITIZED 1
#endif
#endif

namespace sluice::test {

struct allocation_counter {
  std::atomic<long> calls{0};     // operator new, all forms
  std::atomic<long> mallocs{0};   // malloc and its kin, where they can be counted
  std::atomic<long> bytes{0};     // that operator new was asked for
  std::atomic<long> live{0};      // allocated by operator new and not yet freed
  std::atomic<long> fail_in{-1};  // the allocation that fails: 0 = the next one; negative = none
};
inline allocation_counter allocations;

/// While it lives, the n-th operator new (0 = the first) throws std::bad_alloc.
class failing_allocation {
public:
  explicit failing_allocation(long n) { allocations.fail_in = n; }
  failing_allocation(const failing_allocation&) = delete;
  failing_allocation& operator=(const failing_allocation&) = delete;
  ~failing_allocation() { allocations.fail_in = -1; }
  /// True once it has thrown.
  bool happened() const { return allocations.fail_in == -2; }
};

// Not inlined: a compiler may leave out a pair of new and delete, but only both or neither.
#if defined(__GNUC__)
#define SLUICE_TEST_NOINLINE __attribute__((noinline))
#else
#define SLUICE_TEST_NOINLINE
#endif

inline void* counted_new(std::size_t size, std::size_t alignment) {
  long left = allocations.fail_in;
  if (left >= 0) {
    allocations.fail_in = left == 0 ? -2 : left - 1;
    if (left == 0) throw std::bad_alloc();
  }
  const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  if (memory == nullptr) throw std::bad_alloc();
  ++allocations.calls;
  allocations.bytes += static_cast<long>(size);
  ++allocations.live;
  return memory;
}
inline void counted_delete(void* memory) noexcept {
  if (memory == nullptr) return;
  --allocations.live;
  std::free(memory);
}

}  // namespace sluice::test

SLUICE_TEST_NOINLINE void* operator new(std::size_t size) {
  return sluice::test::counted_new(size, alignof(std::max_align_t));
}
SLUICE_TEST_NOINLINE void* operator new[](std::size_t size) {
  return sluice::test::counted_new(size, alignof(std::max_align_t));
}
SLUICE_TEST_NOINLINE void* operator new(std::size_t size, std::align_val_t alignment) {
  return sluice::test::counted_new(size, static_cast<std::size_t>(alignment));
}
SLUICE_TEST_NOINLINE void* operator new[](std::size_t size, std::align_val_t alignment) {
  return sluice::test::counted_new(size, static_cast<std::size_t>(alignment));
}
SLUICE_TEST_NOINLINE void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return sluice::test::counted_new(size, alignof(std::max_align_t));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
SLUICE_TEST_NOINLINE void* operator new[](std::size_t size, const std::nothrow_t& nothrow) noexcept {
  return operator new(size, nothrow);
}
SLUICE_TEST_NOINLINE void operator delete(void* memory, const std::nothrow_t&) noexcept {
  sluice::test::counted_delete(memory);
}
SLUICE_TEST_NOINLINE void operator delete[](void* memory, const std::nothrow_t&) noexcept {
  sluice::test::counted_delete(memory);
}
SLUICE_TEST_NOINLINE void operator delete(void* memory) noexcept { sluice::test::counted_delete(memory); }
SLUICE_TEST_NOINLINE void operator delete[](void* memory) noexcept { sluice::test::counted_delete(memory); }
SLUICE_TEST_NOINLINE void operator delete(void* memory, std::size_t) noexcept { sluice::test::counted_delete(memory); }
SLUICE_TEST_NOINLINE void operator delete[](void* memory, std::size_t) noexcept {
  sluice::test::counted_delete(memory);
}
SLUICE_TEST_NOINLINE void operator delete(void* memory, std::align_val_t) noexcept {
  sluice::test::counted_delete(memory);
}
SLUICE_TEST_NOINLINE void operator delete[](void* memory, std::align_val_t) noexcept {
  sluice::test::counted_delete(memory);
}
SLUICE_TEST_NOINLINE void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  sluice::test::counted_delete(memory);
}
SLUICE_TEST_NOINLINE void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  sluice::test::counted_delete(memory);
}

#if defined(__GLIBC__) && !defined(SLUICE_TEST_SANITIZED)
#define SLUICE_TEST_COUNTS_MALLOC 1
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* malloc(std::size_t size) {
  ++sluice::test::allocations.mallocs;
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
  ++sluice::test::allocations.mallocs;
  return __libc_calloc(count, size);
}
void* realloc(void* memory, std::size_t size) {
  ++sluice::test::allocations.mallocs;
  return __libc_realloc(memory, size);
}
}
#endif
