// How a fuzz target turns bytes into a case of its test: every choice takes the next byte or two, so that a changed
// byte changes one thing. What goes on after the last byte is all zeros: every input is a case.
#pragma once

#include <sluice/core/types.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "demand.hpp"

namespace sluice::test {

class byte_reader {
public:
  byte_reader(const std::uint8_t* data, std::size_t size) : next_(data), end_(data + size) {}

  bool is_empty() const { return next_ == end_; }
  std::uint8_t byte() { return next_ == end_ ? std::uint8_t(0) : *next_++; }
  bool flag() { return byte() % 2 != 0; }
  /// 0 .. count - 1, for count up to 256.
  index_t below(index_t count) { return byte() % count; }
  /// least .. most, both included.
  index_t between(index_t least, index_t most) { return least + below(most - least + 1); }
  /// One of these.
  template <typename T, std::size_t N>
  T one_of(const T (&values)[N]) {
    return values[byte() % N];
  }
  /// The next bytes as they are: any bit pattern of T.
  template <typename T>
  T bits() {
    static_assert(std::is_trivially_copyable_v<T>);
    std::uint8_t raw[sizeof(T)];
    for (std::uint8_t& b : raw) b = byte();
    T value;
    std::memcpy(&value, raw, sizeof value);
    return value;
  }

private:
  const std::uint8_t* next_;
  const std::uint8_t* end_;
};

/// A stream of random bits from few bytes, for what is too large to come from the input itself (Vigna's splitmix64).
class bit_stream {
public:
  explicit bit_stream(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15U;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31U);
  }
  /// Uniform in [-1, 1).
  double uniform() { return static_cast<double>(static_cast<std::int64_t>(next()) >> 11U) * 0x1p-52; }

private:
  std::uint64_t state_;
};

}  // namespace sluice::test
