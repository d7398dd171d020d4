/// Small experts made of one feed-forward network, dealt its hidden units like cards: MiniMoE.
///
///   units in order of importance; expert i of E takes the first `shared` ones, then shared + i, shared + i + E, .. ,
///   cut to `units` in all:  W1_i = W1[units,:], b1_i = b1[units], W2_i = W2[:,units], b2_i = b2
///
/// Every expert costs no more than a network of `units` hidden units, and all begin with what matters most. With E = 1,
/// or shared = units, an expert is the network cut to its first units. Fewer units than asked for are left: the expert
/// is as much narrower. Throws std::invalid_argument if numbers make no sense or `order` is no permutation. Zhang et
/// al. 2023, "Lifting the Curse of Capacity Gap in Distilling Language Models", arXiv:2305.12129; how units are ranked
/// is the caller's (magnitudes, gradients).
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct dealing {
  index_t experts = 1;
  index_t units = 1;   ///< of an expert
  index_t shared = 0;  ///< of these, those that all experts have
};

/// Throws std::invalid_argument unless the order is empty or has all units once.
inline void check_dealt_order(index_t count, std::span<const index_t> order) {
  if (order.empty()) return;
  std::vector<index_t> sorted(order.begin(), order.end());
  std::sort(sorted.begin(), sorted.end());
  bool is_permutation = static_cast<index_t>(sorted.size()) == count;
  for (std::size_t i = 0; is_permutation && i < sorted.size(); ++i)
    is_permutation = sorted[i] == static_cast<index_t>(i);
  if (!is_permutation) throw_invalid("the order of ", sorted.size(), " units is none of all ", count);
}

/// Which of `count` units expert i gets; `order` are all units, the most important first, or empty: as they are.
inline std::vector<index_t> dealt_units(index_t count, const dealing& d, index_t expert,
                                        std::span<const index_t> order = {}) {
  if (d.experts < 1 || expert < 0 || expert >= d.experts || d.shared < 0 || d.units < 1 || d.shared > d.units ||
      d.units > count)
    throw_invalid("expert ", expert, " of ", d.experts, " cannot have ", d.units, " of ", count, " units, ", d.shared,
                  " of them shared");
  std::vector<index_t> own(as_size(d.shared));
  std::iota(own.begin(), own.end(), index_t(0));
  for (index_t u = d.shared + expert; u < count && static_cast<index_t>(own.size()) < d.units; u += d.experts)
    own.push_back(u);
  if (own.empty()) throw_invalid("no unit is left for expert ", expert, " of ", d.experts);
  for (index_t& unit : own)
    if (!order.empty()) unit = order[as_size(unit)];
  return own;
}

/// `order` are the dense network's units, the most important first; empty: as they are.
template <FloatOrDouble Scalar, typename Phi>
expert_bank<ffn<Scalar, Phi>> dealt_experts(ffn<Scalar, Phi> dense, const dealing& d,
                                            std::span<const index_t> order = {}) {
  const index_t hidden = dense.hidden();
  check_dealt_order(hidden, order);
  const bool has_bias = dense.output_bias() != nullptr;
  const matrix<Scalar> up = dense.up().to_matrix(), down = dense.down().to_matrix();
  std::vector<ffn<Scalar, Phi>> experts;
  for (index_t e = 0; e < d.experts; ++e) {
    const std::vector<index_t> units = dealt_units(hidden, d, e, order);
    const auto count = static_cast<index_t>(units.size());
    ffn<Scalar, Phi> own(dense.inputs(), count, {.outputs = dense.outputs(), .bias = has_bias});
    own.up().fill([&](index_t i) { return up(units[as_size(i / up.cols())], i % up.cols()); });
    own.down().fill([&](index_t i) { return down(i / count, units[as_size(i % count)]); });
    if (has_bias) {
      own.up_bias().fill([&](index_t i) { return dense.up_bias().element_at(units[as_size(i)]); });
      own.down_bias().fill([&](index_t i) { return dense.down_bias().element_at(i); });
    }
    experts.push_back(std::move(own));
  }
  return expert_bank<ffn<Scalar, Phi>>(std::move(experts));
}

}  // namespace sluice::inline SLUICE_ISA
