/// A low-rank expert becomes part of the weights beside it, and is taken out again.
///
///   merge_adapter     W += w s B A          W [D',D] the base's, w the weight of the expert, such as a gate that is the same
///   unmerge_adapter   W -= w s B A          for all tokens to come
///
///   merge_adapter(layer.base().expert().weight(), layer.adapters().expert());      // then the base alone does it all
///
/// This is exact where the expert has one weight for every token: a single adapter, or those of an instance whose gate
/// is known. Experts whose weights differ from token to token have to run. B A is computed in full precision whatever
/// the expert is stored as. Every element is rounded once each way, so that unmerge_adapter brings W back but for
/// rounding: about an ulp of W + w s B A. W has to be of float or double. Codes and sixteen-bit weights would lose most
/// of what a small update adds, and are refused.
#pragma once

#include <sluice/adapter/low_rank.hpp>
#include <sluice/kernel/gemm.hpp>

#include <type_traits>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar, typename Storage>
void add_low_rank(parameter<Scalar>& weight, const low_rank_expert<Scalar, Storage>& expert, Scalar factor) {
  check_initialized(weight, "weight");
  check_initialized(expert);
  if (weight.rows() != expert.outputs() || weight.cols() != expert.inputs())
    throw_invalid("a weight [", weight.rows(), ", ", weight.cols(), "] cannot take a low-rank expert that maps ",
                  expert.inputs(), " -> ", expert.outputs());
  const auto numbers_of = [](const LinearMap auto& any) {
    return visit_map(any, [](const auto& map) { return map.weight().to_matrix(); });
  };
  const matrix<Scalar> a = numbers_of(expert.first_map(0)), b = numbers_of(expert.last_map());
  matrix<Scalar> product(b.rows(), a.cols());
  kernel::multiply_nn(b.rows(), a.cols(), a.rows(), b.data(), b.cols(), a.data(), a.cols(), product.data(), a.cols());
  factor *= expert.scale();
  weight.fill([&](index_t i) { return weight.element_at(i) + factor * product.data()[i]; });
}

template <typename Weight>
consteval bool explain_merge() {
  static_assert(
      is_parameter<Weight> && Weight::is_trainable,
      "sluice: a low-rank expert is merged into weights of float or double: in this storage most of its update "
      "would be rounded away; merge first and convert then");
  return true;
}

}  // namespace detail

/// Throws std::invalid_argument if the shapes differ or somebody's weights were never set.
template <typename Weight, typename Scalar, typename Storage>
void merge_adapter(Weight& weight, const low_rank_expert<Scalar, Storage>& expert,
                   std::type_identity_t<Scalar> factor = 1) {
  static_assert(detail::explain_merge<Weight>());
  detail::add_low_rank(weight, expert, factor);
}

template <typename Weight, typename Scalar, typename Storage>
void unmerge_adapter(Weight& weight, const low_rank_expert<Scalar, Storage>& expert,
                     std::type_identity_t<Scalar> factor = 1) {
  static_assert(detail::explain_merge<Weight>());
  detail::add_low_rank(weight, expert, -factor);
}

}  // namespace sluice::inline SLUICE_ISA
