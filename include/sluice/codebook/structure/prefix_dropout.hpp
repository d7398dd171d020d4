/// Quantiser dropout: some items of a training batch keep only their first stages, so that every prefix is worth
/// decoding.
///
///   a group of the context (an item), with probability `dropout`:  n stages, n uniform in 1..M       otherwise M stages
///
/// Later columns are no_code, and later stages neither see the item nor count it. Without groups the batch is one item
/// (EnCodec's bandwidth of a batch); DAC draws for every item. Only in training. Draws: u at 2 g, n = 1 + floor(u M) at
/// 2 g + 1.
/// Zeghidour et al. 2021, "SoundStream", section III.C; Kumar et al. 2023, "High-Fidelity Audio Compression with
/// Improved RVQGAN".
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

inline constexpr random_site prefix_dropout_site{"prefix_dropout"};

/// How many of M stages each of T tokens has, into prefix [T].
template <FloatOrDouble Scalar>
void draw_prefixes(const routing_context<Scalar>& context, index_t tokens, index_t stages, double dropout,
                   buffer<index_t>& prefix) {
  prefix.assign(tokens, stages);
  if (!context.training || !(dropout > 0)) return;
  for (index_t g = 0; g < context.group_count(); ++g) {
    if (!(context.random.uniform(prefix_dropout_site, 2 * g) < dropout)) continue;
    const double u = context.random.uniform(prefix_dropout_site, 2 * g + 1);
    const auto n = (std::min)(1 + static_cast<index_t>(u * static_cast<double>(stages)), stages);
    const token_range group = context.group(g, tokens);
    std::fill(prefix.begin() + group.begin, prefix.begin() + group.end, n);
  }
}

}  // namespace sluice::inline SLUICE_ISA
