/// How often codes were chosen: in a batch, or over as many as are added up.
///
///   perplexity = exp(-sum over c of p_c log(p_c + epsilon)), p_c the share of code c: 1 if one code takes all, C if all
///   take as much. Published programs have epsilon 1e-10 or 1e-7.
///   utilisation = the share of codes that were chosen at all
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/kernel/best_code.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

class code_usage {
public:
  code_usage() = default;
  explicit code_usage(index_t codes) { clear(codes); }

  /// Forgets everything; from now on there are so many codes.
  void clear(index_t codes) {
    counts_.assign(codes, 0);
    total_ = 0;
  }

  /// ids of tokens; no_code is left out.
  void add(const index_t* ids, index_t tokens) {
    for (index_t t = 0; t < tokens; ++t) {
      if (ids[t] == no_code) continue;
      ++counts_[ids[t]];
      ++total_;
    }
  }

  /// Throws std::invalid_argument for another number of codes.
  void add(const code_usage& other) {
    if (other.codes() != codes())
      throw_invalid("code_usage of ", codes(), " codes cannot take that of ", other.codes());
    for (index_t c = 0; c < codes(); ++c) counts_[c] += other.counts_[c];
    total_ += other.total_;
  }

  index_t codes() const noexcept { return counts_.size(); }
  index_t total() const noexcept { return total_; }
  index_t count(index_t code) const noexcept { return counts_[code]; }
  std::span<const index_t> counts() const noexcept { return counts_.span(); }

  /// Codes that were chosen at least once.
  index_t used() const noexcept {
    index_t sum = 0;
    for (const index_t n : counts_) sum += n > 0;
    return sum;
  }
  double utilisation() const noexcept {
    return codes() == 0 ? 0 : static_cast<double>(used()) / static_cast<double>(codes());
  }

  /// 1 where nothing was chosen.
  double perplexity(double epsilon = 1e-10) const {
    double sum = 0;
    for (const index_t n : counts_) {
      const double p = total_ == 0 ? 0 : static_cast<double>(n) / static_cast<double>(total_);
      sum += p * std::log(p + epsilon);
    }
    return std::exp(-sum);
  }

private:
  buffer<index_t> counts_;
  index_t total_ = 0;
};

}  // namespace sluice::inline SLUICE_ISA
