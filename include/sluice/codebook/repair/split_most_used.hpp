/// Codes that nobody uses become copies of those that are used most.
///
///   after a step: codes with N_c < unused_below take, in their order, the vectors of the codes with the greatest N,
///   each of which loses half of its N to the copy
///
/// N is what the codebook says of its sizes (codebook/repair/expire_codes.hpp). If more than half of the codes are
/// unused, half of all, drawn without repetition, are replaced: a code gives one copy at most. A copy is the same
/// vector, which the lowest code wins until gradients or noise tell them apart: `noise` moves it by U(-noise, noise)
/// times its length over sqrt(D) an element; the published program has none and relies on its sampled assignment. Equal
/// N: the lowest code.
/// Draws: those that are replaced u_i; noise of code c at C + c D.
/// Zhu et al. 2022, "Unified Multivariate Gaussian Mixture for Efficient Neural Image Compression", the released code.
#pragma once

#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/codebook/repair/distinct_draws.hpp>
#include <sluice/codebook/repair/repairable_codes.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

/// Which codes take whose vectors: pairs of them, from counts of use.
class most_used_split {
public:
  /// Throws std::invalid_argument unless limit >= 0. draw(i) is uniform in (0, 1).
  template <typename Scalar, typename Draw>
  void find(const Scalar* sizes, index_t codes, double limit, Draw&& draw) {
    if (!is_at_least(limit, 0.0)) throw_invalid("a code is unused below a size >= 0, not ", limit);
    takers_.clear();
    donors_.clear();
    for (index_t c = 0; c < codes; ++c) (sizes[c] < static_cast<Scalar>(limit) ? takers_ : donors_).push_back(c);
    const index_t most = codes / 2;
    if (takers_.size() > most) {
      draws_.begin(takers_.size());
      chosen_.clear();
      for (index_t i = 0; i < most; ++i) chosen_.push_back(takers_[draws_.take(draw(i))]);
      std::sort(chosen_.begin(), chosen_.end());
      std::swap(takers_, chosen_);
    }
    std::sort(donors_.begin(), donors_.end(), largest_first{sizes});
  }

  void reserve(index_t codes) {
    for (auto* list : {&takers_, &donors_, &chosen_}) list->reserve(codes);
    draws_.reserve(codes);
  }

  index_t size() const noexcept { return (std::min)(takers_.size(), donors_.size()); }
  index_t taker(index_t i) const noexcept { return takers_[i]; }
  index_t donor(index_t i) const noexcept { return donors_[i]; }

private:
  buffer<index_t> takers_;
  buffer<index_t> donors_;
  buffer<index_t> chosen_;
  distinct_draws draws_;
};

struct split_most_used {
  using role = repair_role;
  template <typename Scalar>
  struct memory {
    most_used_split split;
    buffer<Scalar> vector;

    void reserve(index_t, index_t codes, index_t width) {
      split.reserve(codes);
      vector.reserve(width);
    }
  };
  static constexpr random_site site{"split_most_used"};

  double unused_below = 1e-6;
  double noise = 1e-3;

  /// Throws std::invalid_argument unless both numbers are at least 0.
  void validate() const {
    if (!is_at_least(unused_below, 0.0) || !is_at_least(noise, 0.0))
      throw_invalid("split_most_used needs unused_below and noise >= 0, not ", unused_below, " and ", noise);
  }

  template <typename Codes, typename Scalar>
  void after_step(Codes& codebook, const quantized_batch<Scalar>& batch, memory<Scalar>& m,
                  buffer<index_t>& replaced) const {
    static_assert(detail::explain_counted_codes<Codes>() && detail::explain_replaceable_codes<Codes, Scalar>());
    if (batch.counted == 0) return;
    const random_source& random = batch.context.random;
    const index_t codes = codebook.codes(), width = batch.width();
    m.split.find(codebook.sizes().value().data(), codes, unused_below,
                 [&](index_t i) { return random.uniform(site, i); });
    m.vector.resize(width);
    for (index_t i = 0; i < m.split.size(); ++i) {
      const index_t to = m.split.taker(i), from = m.split.donor(i);
      const Scalar half = codebook.sizes().value()[as_size(from)] / 2;
      std::copy_n(batch.code(from), width, m.vector.data());
      codebook.replace(from, m.vector.data(), half);
      const double size = noise * std::sqrt(static_cast<double>(kernel::dot(m.vector.data(), m.vector.data(), width)) /
                                            static_cast<double>(width));
      for (index_t d = 0; d < width && noise > 0; ++d)
        m.vector[d] += static_cast<Scalar>(size * (2 * random.uniform(site, codes + to * width + d) - 1));
      codebook.replace(to, m.vector.data(), half);
      replaced.push_back(to);
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA
