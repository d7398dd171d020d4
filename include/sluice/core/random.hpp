/// Replayable randomness: every draw is a pure function of (seed, step, site, position).
///
/// No state advances, so forward, backward, tests and any number of threads see the same draws in any order.
///   site        tells draws of different kinds apart: a name, such as random_site("sparse_mixer.round")
///   at_step(s)  the same source at another step of training
///   split(i)    a source of its own for the i-th of several users, such as the layers of a model
///   replay      recorded numbers take the generator's place: replay(site, values) makes draw(site, i) return
///               values[i], which is how published cases with given noise are checked
/// at_step and split commute, splits can be split again, and all keep what is replayed.
/// Generator: Philox-4x32-10. Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once

#include <sluice/core/types.hpp>

#include <array>
#include <cmath>
#include <numbers>
#include <span>
#include <string_view>

namespace sluice::inline SLUICE_ISA {

/// What a draw is for: a name, hashed at compile time (32-bit FNV-1a), or a number. Who draws owns the name.
class random_site {
public:
  consteval explicit random_site(std::string_view name) : number_(2166136261) {
    for (const char letter : name) number_ = (number_ ^ static_cast<unsigned char>(letter)) * 16777619;
  }
  constexpr explicit random_site(std::uint32_t number) : number_(number) {}

  constexpr std::uint32_t number() const noexcept { return number_; }
  friend constexpr bool operator==(random_site, random_site) = default;

  static const random_site user_site;  ///< for programs that need no more than one

private:
  std::uint32_t number_;
};

inline constexpr random_site random_site::user_site{1000u};

namespace detail {

using random_block = std::array<std::uint32_t, 4>;

/// Ten rounds of Philox-4x32: 128 random bits for a counter and a key.
constexpr random_block philox_4x32_10(random_block counter, std::uint32_t key0, std::uint32_t key1) noexcept {
  for (int pass = 0; pass < 10; ++pass) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(product0)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

/// 53 of 64 bits, moved half a step off zero. From 1/2 on a double has no half steps: they go to the even neighbour,
/// but the last to the one below 1. In whole numbers, whose rounding no compiler flag changes.
constexpr double between_zero_and_one(std::uint32_t high, std::uint32_t low) noexcept {
  constexpr std::uint64_t middle = std::uint64_t{1} << 52, last = 2 * middle - 1;
  const std::uint64_t step = std::uint64_t{high >> 5} << 26 | low >> 6, even = step + step % 2;
  const std::uint64_t halves = step < middle ? 2 * step + 1 : 2 * (even < last ? even : last);
  return static_cast<double>(halves) * 0x1p-54;
}

}  // namespace detail

class random_source {
public:
  random_source() = default;
  explicit random_source(std::uint64_t seed, std::uint64_t step = 0) : seed_(seed), step_(step) {}

  /// The same source at another step of training.
  random_source at_step(std::uint64_t step) const {
    random_source other = *this;
    other.step_ = step;
    return other;
  }

  /// A source of its own for one of several users: at every site and step its draws differ from those of this source
  /// and of other places.
  random_source split(index_t place) const {
    const auto p = static_cast<std::uint64_t>(place);
    const block_t counter{static_cast<std::uint32_t>(p), static_cast<std::uint32_t>(p >> 32), 0,
                          random_site("random_source.split").number()};
    const block_t bits = detail::philox_4x32_10(counter, static_cast<std::uint32_t>(~seed_),
                                                static_cast<std::uint32_t>(~seed_ >> 32));
    random_source other = *this;
    other.seed_ = bits[0] | std::uint64_t{bits[1]} << 32;
    return other;
  }

  /// Makes draws at one site return recorded numbers: values[position], of whatever distribution is asked for. The
  /// numbers must outlive the source; positions past the end are drawn. At most one site is replayed at a time.
  random_source& replay(random_site site, std::span<const double> values) {
    replay_site_ = site;
    replay_ = values;
    return *this;
  }

  /// Uniform in (0, 1): never exactly 0 or 1, so that its logarithm is finite.
  double uniform(random_site site, index_t position) const {
    if (const double* recorded = find(site, position)) return *recorded;
    return unit(block(site, position), 0);
  }

  /// Standard normal (Box-Muller).
  double normal(random_site site, index_t position) const {
    if (const double* recorded = find(site, position)) return *recorded;
    const auto bits = block(site, position);
    return std::sqrt(-2 * std::log(unit(bits, 0))) * std::cos(2 * std::numbers::pi * unit(bits, 2));
  }

  /// Standard Gumbel, -log(-log u).
  double gumbel(random_site site, index_t position) const {
    if (const double* recorded = find(site, position)) return *recorded;
    return -std::log(-std::log(unit(block(site, position), 0)));
  }

private:
  using block_t = detail::random_block;

  const double* find(random_site site, index_t position) const {
    const bool recorded = site == replay_site_ && static_cast<std::uint64_t>(position) < replay_.size();
    return recorded ? &replay_[static_cast<std::size_t>(position)] : nullptr;
  }

  block_t block(random_site site, index_t position) const {
    const auto p = static_cast<std::uint64_t>(position);
    const block_t counter{static_cast<std::uint32_t>(p),
                          static_cast<std::uint32_t>(p >> 32) ^ static_cast<std::uint32_t>(step_ >> 32) << 8,
                          static_cast<std::uint32_t>(step_), site.number()};
    return detail::philox_4x32_10(counter, static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32));
  }

  static double unit(const block_t& bits, std::size_t first) {
    return detail::between_zero_and_one(bits[first], bits[first + 1]);
  }

  std::uint64_t seed_ = 0;
  std::uint64_t step_ = 0;
  random_site replay_site_ = random_site::user_site;
  std::span<const double> replay_;
};

}  // namespace sluice::inline SLUICE_ISA
