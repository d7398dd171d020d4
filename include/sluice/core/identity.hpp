/// A number that no other object of the program has: how an optimiser knows a model again that moved, grew or was
/// copied.
///
/// A copy is another object and gets a number of its own; a move takes the number along and leaves a new one behind.
/// Assigning a copy changes what an object holds, not which object it is. Numbers start at 1.
#pragma once

#include <sluice/core/isa.hpp>

#include <atomic>
#include <cstdint>
#include <utility>

namespace sluice::inline SLUICE_ISA {

class identity {
public:
  identity() noexcept : number_(next()) {}
  identity(const identity&) noexcept : identity() {}
  identity(identity&& other) noexcept : number_(std::exchange(other.number_, next())) {}
  identity& operator=(const identity&) noexcept { return *this; }
  identity& operator=(identity&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~identity() = default;

  std::uint64_t number() const noexcept { return number_; }

private:
  static std::uint64_t next() noexcept {
    static std::atomic<std::uint64_t> last{0};
    return last.fetch_add(1, std::memory_order_relaxed) + 1;
  }

  std::uint64_t number_;
};

}  // namespace sluice::inline SLUICE_ISA
