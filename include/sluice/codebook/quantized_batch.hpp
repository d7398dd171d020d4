/// What the policies of a vector quantiser see of a batch, and the roles that they play.
///
///   metric       what near means: keys and offsets of the search, made of codes
///   assignment   who gets which code in training; the nearest unless another is given
///   gradient     how dy passes the choice on its way to x, and perhaps to codes
///   loss         adds to the loss, and to the gradients of x and codes
///   repair       after a step: what becomes of codes that nobody uses
///
/// A policy names its role, `using role = gradient_role`, and may have memory of its own in the tape, `template
/// <typename Scalar> struct memory`, whose reserve(tokens, codes, width), if there is one, makes room for every batch of so
/// many tokens, as layer/reserve.hpp asks for. A quantiser takes any number of losses and at most one of every other
/// role, in any order. A policy that has parameters (an average that a repair keeps, weights that a loss learns) visits
/// them and says under which name the quantiser's have them, `static constexpr const char* name`; backward and
/// after_step may change it. One whose result for a token depends on others says `static constexpr bool causal =
/// false`.
#pragma once

#include <sluice/codebook/code_search.hpp>
#include <sluice/codebook/nearest.hpp>
#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct metric_role {};
struct assignment_role {};
struct gradient_role {};
struct loss_role {};
struct repair_role {};

template <typename Scalar>
struct quantized_batch {
  const_matrix_map<Scalar> x;      ///< [T,D], zero where a token is hidden
  const_matrix_map<Scalar> codes;  ///< [C,D]
  const index_t* ids = nullptr;    ///< [T], no_code where a token is hidden; null while they are assigned
  const std::uint8_t* seen = nullptr;  ///< [T], 0 where a token is hidden
  index_t counted = 0;             ///< tokens that have a code; none while they are assigned
  const code_search<Scalar>& search;
  nearest_scratch<Scalar>& scratch;
  const routing_context<Scalar>& context;

  index_t tokens() const noexcept { return x.rows(); }
  index_t width() const noexcept { return x.cols(); }
  index_t code_count() const noexcept { return codes.rows(); }
  bool has_code(index_t t) const noexcept { return ids[t] != no_code; }
  bool is_hidden(index_t t) const noexcept { return seen[t] == 0; }
  /// The code of a token that has one.
  const Scalar* code_of(index_t t) const noexcept { return codes.data() + ids[t] * codes.cols(); }
  const Scalar* row(index_t t) const noexcept { return x.data() + t * x.cols(); }
  const Scalar* code(index_t c) const noexcept { return codes.data() + c * codes.cols(); }
};

/// The tokens that have a code, in order.
template <FloatOrDouble Scalar>
void list_tokens(const quantized_batch<Scalar>& batch, buffer<index_t>& tokens) {
  tokens.clear();
  tokens.reserve(batch.tokens());
  for (index_t t = 0; t < batch.tokens(); ++t)
    if (batch.has_code(t)) tokens.push_back(t);
}

namespace detail {

struct nothing_kept {};

template <typename Scalar, typename Policy>
struct memory_of_policy {
  using type = nothing_kept;
};
template <typename Scalar, typename Policy>
  requires requires { typename Policy::template memory<Scalar>; }
struct memory_of_policy<Scalar, Policy> {
  using type = typename Policy::template memory<Scalar>;
};

template <typename Policy>
concept HasRole = requires { typename Policy::role; };

template <typename Role, typename Policy>
constexpr bool plays() {
  static_assert(HasRole<Policy>,
                "sluice: a policy of a vector_quantizer needs a member type `role`, such as gradient_role or loss_role "
                "(codebook/quantized_batch.hpp)");
  return std::is_same_v<typename Policy::role, Role>;
}

template <typename Policy>
constexpr bool is_causal_policy() {
  if constexpr (requires { Policy::causal; })
    return Policy::causal;
  else
    return true;
}

/// The policies of a quantiser and, in the same order, what they keep in a tape: found by role.
template <typename Policies>
struct policy_set;
template <typename... Policies>
struct policy_set<std::tuple<Policies...>> {
  template <typename Scalar>
  using memories = std::tuple<typename memory_of_policy<Scalar, Policies>::type...>;

  template <typename Role>
  static constexpr int count = (0 + ... + (plays<Role, Policies>() ? 1 : 0));

  /// Whether what becomes of a token depends on it alone.
  static constexpr bool causal = (true && ... && is_causal_policy<Policies>());

  /// f(policy, memory...) for each with this role, in order.
  template <typename Role, typename Tuple, typename F, typename... Memories>
  static void for_each(Tuple& policies, F&& f, Memories&... memories) {
    const auto call = [&]<std::size_t I>(std::integral_constant<std::size_t, I>) {
      if constexpr (plays<Role, std::tuple_element_t<I, std::tuple<Policies...>>>())
        f(std::get<I>(policies), std::get<I>(memories)...);
    };
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (call(std::integral_constant<std::size_t, I>{}), ...);
    }(std::index_sequence_for<Policies...>{});
  }
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
