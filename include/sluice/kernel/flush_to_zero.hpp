/// While it lives, this thread's arithmetic takes and gives zero in place of numbers too small for a full mantissa.
///
///   sluice::flush_to_zero guard;      // first line of an audio callback
///
/// Such numbers come up when a signal fades out, and some processors take a hundred times as long for each. The former
/// mode comes back with the end of the scope, so guards may be nested. x86 with SSE: both for operands and results.
/// 64-bit ARM: its one mode. Elsewhere nothing happens; available() says so.
#pragma once

#include <sluice/core/isa.hpp>

#include <cstdint>

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace sluice::inline SLUICE_ISA {

class flush_to_zero {
public:
  flush_to_zero() noexcept : before_(mode()) { set_mode(before_ | bits); }
  flush_to_zero(const flush_to_zero&) = delete;
  flush_to_zero& operator=(const flush_to_zero&) = delete;
  ~flush_to_zero() { set_mode(before_); }

  static constexpr bool available() noexcept { return bits != 0; }

private:
#if defined(__SSE2__) || defined(_M_X64)
  using register_t = unsigned;
  static constexpr register_t bits = 0x8000 | 0x0040;  // FTZ for results, DAZ for operands
  static register_t mode() noexcept { return _mm_getcsr(); }
  static void set_mode(register_t m) noexcept { _mm_setcsr(m); }
#elif defined(__aarch64__) && defined(__GNUC__)
  using register_t = std::uint64_t;
  static constexpr register_t bits = register_t(1) << 24;  // FZ
  static register_t mode() noexcept {
    register_t m;
    asm volatile("mrs %0, fpcr" : "=r"(m));
    return m;
  }
  static void set_mode(register_t m) noexcept { asm volatile("msr fpcr, %0" : : "r"(m)); }
#else
  using register_t = unsigned;
  static constexpr register_t bits = 0;
  static register_t mode() noexcept { return 0; }
  static void set_mode(register_t) noexcept {}
#endif

  register_t before_;
};

}  // namespace sluice::inline SLUICE_ISA
