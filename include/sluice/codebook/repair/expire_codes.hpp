/// Codes that few tokens chose lately become tokens of the batch.
///
///   after a step: every code with N_c < threshold becomes a token, drawn without repetition, with N_c = threshold
///
/// N is what the codebook says of its sizes: moving_average_codes count anyway, counted_codes<learned_codes<float>>
/// count for others. A batch with fewer tokens than there are codes is repeated as often as needed and each copy moved
/// by noise U(0, noise / sqrt(D)) an element, so that no two codes are the same; with noise = 0 only as many copies are
/// made as there are codes to replace, unmoved. With `recompute` all codes are made of N and M once more, as where the
/// restart comes before the codes (RQ-VAE). A batch without tokens changes nothing.
///
///   expire_codes{.threshold = 2}                          k-means VQ, with decay 0.8
///   expire_codes{.threshold = 1, .recompute = true}       RQ-VAE, whose N begin at 0: the first batch restarts most codes
///
/// Draws: code c takes candidate floor(u_c n), or the next that is free; noise of candidate i at C + i D.
/// Dhariwal et al. 2020, "Jukebox", section 3.1; Lee et al. 2022, "Autoregressive Image Generation using Residual
/// Quantization"; Zeghidour et al. 2021, "SoundStream".
#pragma once

#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/codebook/repair/distinct_draws.hpp>
#include <sluice/codebook/repair/repairable_codes.hpp>
#include <sluice/core/numeric.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

struct expire_codes {
  using role = repair_role;
  template <typename Scalar>
  struct memory {
    buffer<index_t> tokens;
    distinct_draws draws;
    buffer<Scalar> vector;  ///< [D]

    void reserve(index_t count, index_t codes, index_t width) {
      tokens.reserve(count);
      draws.reserve(count + codes);
      vector.reserve(width);
    }
  };
  static constexpr random_site site{"expire_codes"};

  double threshold = 2;
  double noise = 0.01;
  bool recompute = false;

  /// Throws std::invalid_argument unless both numbers are at least 0.
  void validate() const {
    if (!is_at_least(threshold, 0.0) || !is_at_least(noise, 0.0))
      throw_invalid("expire_codes needs threshold and noise >= 0, not ", threshold, " and ", noise);
  }

  template <typename Codes, typename Scalar>
  void after_step(Codes& codebook, const quantized_batch<Scalar>& batch, memory<Scalar>& m,
                  buffer<index_t>& replaced) const {
    static_assert(detail::explain_counted_codes<Codes>() && detail::explain_replaceable_codes<Codes, Scalar>());
    if (batch.counted == 0) return;
    for (index_t c = 0; c < codebook.codes(); ++c)
      if (codebook.sizes().element_at(c) < static_cast<Scalar>(threshold)) replaced.push_back(c);
    if (replaced.empty()) return;
    list_tokens(batch, m.tokens);
    const index_t tokens = m.tokens.size(), wanted = noise > 0 ? codebook.codes() : replaced.size();
    const index_t copies = (wanted + tokens - 1) / tokens, candidates = copies * tokens;
    m.draws.begin(candidates);
    m.vector.resize(batch.width());
    for (const index_t c : replaced) {
      const index_t i = m.draws.take(batch.context.random.uniform(site, c));
      std::copy_n(batch.row(m.tokens[i % tokens]), batch.width(), m.vector.data());
      if (copies > 1 && noise > 0) move(batch, codebook.codes(), i, m.vector.data());
      codebook.replace(c, m.vector.data(), static_cast<Scalar>(threshold));
    }
    if constexpr (requires { codebook.recompute(batch.context.executor); })
      if (recompute) codebook.recompute(batch.context.executor);
  }

private:
  template <typename Scalar>
  void move(const quantized_batch<Scalar>& batch, index_t codes, index_t candidate, Scalar* vector) const {
    const double size = noise / std::sqrt(static_cast<double>(batch.width()));
    for (index_t i = 0; i < batch.width(); ++i)
      vector[i] +=
          static_cast<Scalar>(size * batch.context.random.uniform(site, codes + candidate * batch.width() + i));
  }
};

}  // namespace sluice::inline SLUICE_ISA
