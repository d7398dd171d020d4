/// QMoE's dictionary: 65536 runs of pairs of ternary values, the likeliest ones where nine of ten values are zero.
///
///   value 0: zero   1: a row's least   2: its largest;   pair r = first + 3 second;   a run has 1 to 14 pairs
///
/// Values are taken to be independent with probabilities .885, .0575, .0575. Runs are numbered by falling probability,
/// equals in the order of their pairs (a run before those that begin with it); products are formed in double, a pair's
/// of its two values and a run's from left to right, so that the order is the same wherever it is made. Every beginning
/// of a run is a run and so is every pair: the longest run that fits is found pair by pair, and there always is one.
/// It is made once a program, when it is first asked for.
/// Paper: Frantar and Alistarh 2023, QMoE, section 4.2.
#pragma once

#include <sluice/core/types.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <queue>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class ternary_dictionary {
public:
  static constexpr index_t runs = 65536;
  static constexpr index_t most_pairs = 14;

  static const ternary_dictionary& shared() {
    static const ternary_dictionary dictionary;
    return dictionary;
  }

  index_t pairs(std::uint16_t run) const noexcept { return entries_[run].low & 15; }
  /// Value i of a run, i < 2 pairs(run).
  int value(std::uint16_t run, index_t i) const noexcept {
    const std::uint32_t half = i < 14 ? entries_[run].low : entries_[run].high;
    return static_cast<int>(half >> (4 + 2 * (i % 14)) & 3U);
  }
  /// Where a run has the values 1 and 2: bit i of each is value i. Bits 28 .. 31 of plus are its pairs.
  struct places {
    std::uint32_t minus;
    std::uint32_t plus;
  };
  const places& where(std::uint16_t run) const noexcept { return places_[run]; }

  /// The run and one pair more, or 0 where there is none: run 0 has one pair.
  std::uint16_t longer(std::uint16_t run, int pair) const noexcept { return longer_[run][as_size(pair)]; }
  /// The run of one pair.
  std::uint16_t single(int pair) const noexcept { return single_[as_size(pair)]; }

  /// QMoE's two words of a run: bits 0 .. 3 its pairs in both, then seven pairs each of four bits, the first value low.
  std::array<std::uint32_t, 2> words(std::uint16_t run) const noexcept {
    return {entries_[run].low, entries_[run].high};
  }

private:
  struct entry {
    std::uint32_t low = 0;
    std::uint32_t high = 0;
  };
  struct candidate {
    double probability = 1;
    std::uint16_t parent = 0;
    std::uint8_t length = 0;
    std::array<std::uint8_t, as_size(most_pairs)> pairs{};

    /// For a heap whose top is the likeliest, the first among equals.
    bool operator<(const candidate& other) const noexcept {
      if (probability != other.probability) return probability < other.probability;
      return std::lexicographical_compare(other.pairs.begin(), other.pairs.begin() + other.length, pairs.begin(),
                                          pairs.begin() + length);
    }
  };

  ternary_dictionary() : entries_(as_size(runs)), places_(as_size(runs)), longer_(as_size(runs)) {
    const std::array<double, 3> values{.885, (1 - .885) / 2, (1 - .885) / 2};
    std::priority_queue<candidate> heap;
    const auto extend = [&](const candidate& run, std::uint16_t id) {
      for (int pair = 0; pair < 9; ++pair) {
        candidate more = run;
        more.parent = id;
        more.probability = run.probability * (values[as_size(pair % 3)] * values[as_size(pair / 3)]);
        more.pairs[more.length++] = static_cast<std::uint8_t>(pair);
        heap.push(more);
      }
    };
    extend({}, 0);
    for (index_t id = 0; id < runs; ++id) {
      const candidate run = heap.top();
      heap.pop();
      add(run, static_cast<std::uint16_t>(id));
      if (run.length < most_pairs) extend(run, static_cast<std::uint16_t>(id));
    }
  }

  void add(const candidate& run, std::uint16_t id) {
    const int last = run.pairs[run.length - 1U];
    (run.length == 1 ? single_ : longer_[run.parent])[as_size(last)] = id;
    entry& e = entries_[id];
    e.low = e.high = run.length;
    places& at = places_[id];
    at.plus = std::uint32_t{run.length} << 28;
    for (unsigned i = 0; i < 2U * run.length; ++i) {
      const unsigned pair = run.pairs[i / 2], value = i % 2 == 0 ? pair % 3 : pair / 3;
      (i < 14 ? e.low : e.high) |= value << (4 + 2 * (i % 14));
      if (value == 1) at.minus |= 1U << i;
      if (value == 2) at.plus |= 1U << i;
    }
  }

  std::vector<entry> entries_;
  std::vector<places> places_;
  std::vector<std::array<std::uint16_t, 9>> longer_;
  std::array<std::uint16_t, 9> single_{};
};

}  // namespace sluice::inline SLUICE_ISA
