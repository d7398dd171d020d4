/// Items whose codes are all the same, told apart by a number more: what semantic ids end with.
///
///   ids [T,M] -> numbers [T,1] = how many items before have the same row of ids
///
/// Returns how many codes the new column has: 1 where all rows differ. An item with no_code in its row has it in the
/// new column too. Numbers go by the order of items, so that those of items that are there stay when others are added
/// behind. T log T comparisons of rows. Rajput et al. 2023, "Recommender Systems with Generative Retrieval", section
/// 3.1.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/kernel/best_code.hpp>

#include <algorithm>
#include <numeric>

namespace sluice::inline SLUICE_ISA {

/// Throws std::invalid_argument unless numbers is [T,1].
inline index_t number_equal_items(tokens_in<index_t> ids, tokens_out<index_t> numbers) {
  const index_t items = ids.rows();
  if (numbers.rows() != items || numbers.cols() != 1)
    throw_invalid(items, " items need numbers [", items, ", 1], not [", numbers.rows(), ", ", numbers.cols(), "]");
  const auto row = [&](index_t t) { return ids.data() + t * ids.outerStride(); };
  const auto order = [&](index_t a, index_t b) {
    return std::lexicographical_compare(row(a), row(a) + ids.cols(), row(b), row(b) + ids.cols());
  };
  buffer<index_t> sorted;
  sorted.resize(items);
  std::iota(sorted.begin(), sorted.end(), index_t(0));
  std::sort(sorted.begin(), sorted.end(), [&](index_t a, index_t b) { return order(a, b) || (!order(b, a) && a < b); });
  index_t codes = items == 0 ? 0 : 1;
  for (index_t i = 0, number = 0; i < items; ++i) {
    const index_t t = sorted[i];
    number = i > 0 && !order(sorted[i - 1], t) ? number + 1 : 0;
    const bool is_whole = std::find(row(t), row(t) + ids.cols(), no_code) == row(t) + ids.cols();
    numbers(t, 0) = is_whole ? number : no_code;
    if (is_whole) codes = (std::max)(codes, number + 1);
  }
  return codes;
}

}  // namespace sluice::inline SLUICE_ISA
