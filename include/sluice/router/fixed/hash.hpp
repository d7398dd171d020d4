/// Hash routing: a table says which experts a token has, by its id.
///
///   table [V,K]   S = table[id of t]   w = weights of S      ids come in routing_context::token_ids, 0 <= id < V,
///                                                            or in modality_ids or cluster_ids (id_source)
///
/// The choice learns nothing and looks at no score. What weighs it is a rule of its own, of which score, weigh and
/// backward are used:
///
///   even_weights (the default)   w = 1/K for every expert, no gate and no gradient              Roller et al.
///   sigmoid_rule                 over a gate: w = s[e] / sum of s over S, and so on; gradients as there   DeepSeek-V4
///
///   hash_router<float> router(no_gate<float>(D, E), random_hash(V, E, 1, random_source(7)));
///   hash_router<float, linear_gate<float>, sigmoid_rule<float>> router(linear_gate<float>(D, E), {table, weights});
///
/// Tables: random_hash draws K distinct experts an id; balanced_hash hands out ids, the most frequent first, each to
/// the experts that have the fewest occurrences so far (the lower index among equals), so that no two loads differ by
/// more than one id's occurrences; any other is a matrix [V,K]. The table is a state ("rule.table": saved and loaded,
/// not learned). A call may ask for the first k <= K of a row. Refused with its numbers: a call without ids, an id of a
/// token that is no padding outside the table, a row that names no expert or one twice. Padding may have any id. NaN
/// and T = 0 as everywhere. Causal.
/// Roller, Sukhbaatar, Szlam, Weston 2021, arXiv:2106.04426.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/gate/none.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/weighed_rule.hpp>

#include <algorithm>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline void check_hash_sizes(index_t ids, index_t experts, index_t top_k) {
  if (ids < 0 || top_k < 1 || top_k > experts)
    throw_invalid("a table of experts needs V >= 0 and 1 <= K <= E, not V = ", ids, ", K = ", top_k, ", E = ", experts);
}

}  // namespace detail

inline constexpr random_site hash_table_site{"hash.table"};

/// A table [V,K] of experts drawn for each id, uniformly and without repetition.
inline matrix<index_t> random_hash(index_t ids, index_t experts, index_t top_k, const random_source& random) {
  detail::check_hash_sizes(ids, experts, top_k);
  matrix<index_t> table(ids, top_k);
  std::vector<index_t> left(static_cast<std::size_t>(experts));  // from j on; a shuffle may begin at any order
  std::iota(left.begin(), left.end(), index_t{0});
  for (index_t id = 0; id < ids; ++id)
    for (index_t j = 0; j < top_k; ++j) {
      const double drawn = random.uniform(hash_table_site, id * top_k + j) * static_cast<double>(experts - j);
      const index_t n = (std::min)(j + static_cast<index_t>(drawn), experts - 1);
      std::swap(left[static_cast<std::size_t>(j)], left[static_cast<std::size_t>(n)]);
      table(id, j) = left[static_cast<std::size_t>(j)];
    }
  return table;
}

/// A table [V,K] for ids that occur so often, which spreads the occurrences evenly.
inline matrix<index_t> balanced_hash(std::span<const index_t> occurrences, index_t experts, index_t top_k = 1) {
  const auto ids = static_cast<index_t>(occurrences.size());
  detail::check_hash_sizes(ids, experts, top_k);
  std::vector<index_t> order(occurrences.size());
  std::iota(order.begin(), order.end(), index_t{0});
  const auto count = [&](index_t id) { return occurrences[static_cast<std::size_t>(id)]; };
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return count(a) > count(b); });

  using filled = std::pair<index_t, index_t>;                                     // load, expert
  const auto is_fuller = [](const filled& a, const filled& b) { return a > b; };  // the emptiest is the heap's first
  std::vector<filled> heap;
  for (index_t e = 0; e < experts; ++e) heap.emplace_back(0, e);
  matrix<index_t> table(ids, top_k);
  for (const index_t id : order) {
    if (count(id) < 0) throw_invalid("id ", id, " cannot occur ", count(id), " times");
    auto end = heap.end();
    for (index_t j = 0; j < top_k; ++j, --end) std::pop_heap(heap.begin(), end, is_fuller);
    for (index_t j = 0; j < top_k; ++j) {
      filled& next = *(end + (top_k - 1 - j));
      table(id, j) = next.second;
      next.first += count(id);
    }
    while (end != heap.end()) std::push_heap(heap.begin(), ++end, is_fuller);
  }
  return table;
}

/// Which ids of the context a table is read by.
enum class id_source { token, modality, cluster };

/// The rule of hash routing, for one token.
template <FloatOrDouble Scalar, typename Weights = even_weights<Scalar>>
class hash_rule : public weighed_by<Scalar, Weights> {
  using base = weighed_by<Scalar, Weights>;

public:
  hash_rule(const matrix<index_t>& table, Weights weights = {}, id_source source = id_source::token)
      : hash_rule(table.rows(), table.cols(), std::move(weights), source) {
    table_.fill([&](index_t i) { return static_cast<Scalar>(table.data()[i]); });
  }
  /// With a table that is still to be loaded or assigned.
  hash_rule(index_t ids, index_t top_k, Weights weights = {}, id_source source = id_source::token)
      : base(std::move(weights)),
        table_({ids, top_k}, parameter_role::state, initial_values::uniform(0)),
        source_(source) {
    if (top_k < 1) throw_invalid("hash routing needs at least one expert a token, not K = ", top_k);
  }

  index_t top_k() const noexcept { return table_.cols(); }

  void validate(index_t experts) const {
    base::validate(experts);
    if (experts > index_t{1} << std::numeric_limits<Scalar>::digits)
      throw_invalid("a table of this precision cannot name each of E = ", experts, " experts");
    if (table_.has_values())
      for (index_t id = 0; id < table_.rows(); ++id) check_row(id, top_k(), experts);
  }

  /// Also of rows that are used: a file or a program may have written anything.
  void validate_call(const choice_call<Scalar>& call) const {
    base::validate_call(call);
    if (call.k > top_k()) throw_invalid("the table has ", top_k(), " experts a token, the call asks for k = ", call.k);
    if (!table_.has_values()) throw_invalid("nobody has set the table of hash routing: give, load or write one");
    if (static_cast<index_t>(ids_of(call.context).size()) != call.tokens)
      throw_invalid("hash routing needs routing_context.", name_of_ids(), ", one for each of ", call.tokens, " tokens");
    for (index_t t = 0; t < call.tokens; ++t) {
      if (call.context.is_padding(t)) continue;
      const index_t id = id_of(call.context, t);
      if (id < 0 || id >= table_.rows())
        throw_invalid("token ", t, " has id ", id, ", the table has rows for ids 0 to ", table_.rows() - 1);
      check_row(id, call.k, call.experts);
    }
  }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    const Scalar* const experts = row_of(id_of(row.context, row.token));
    for (index_t j = 0; j < row.k; ++j) ids[j] = static_cast<index_t>(experts[j]);
    return row.k;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("table", self.table_);
    base::visit_parameters(self, visit);
  }

private:
  std::span<const index_t> ids_of(const routing_context<Scalar>& context) const noexcept {
    return source_ == id_source::token      ? context.token_ids
           : source_ == id_source::modality ? context.modality_ids
                                            : context.cluster_ids;
  }
  const char* name_of_ids() const noexcept {
    return source_ == id_source::token ? "token_ids" : source_ == id_source::modality ? "modality_ids" : "cluster_ids";
  }
  index_t id_of(const routing_context<Scalar>& context, index_t token) const {
    return ids_of(context)[static_cast<std::size_t>(token)];
  }
  const Scalar* row_of(index_t id) const { return table_.data() + id * top_k(); }

  void check_row(index_t id, index_t k, index_t experts) const {
    constexpr auto limit = static_cast<Scalar>(index_t{1} << std::numeric_limits<Scalar>::digits);
    const Scalar* const row = row_of(id);
    for (index_t j = 0; j < k; ++j) {
      const Scalar number = row[j];
      const bool is_small_enough = !is_nan(number) && number > -limit && number < limit;  // else a cast is undefined
      const index_t expert = is_small_enough ? static_cast<index_t>(number) : -1;
      if (!is_small_enough || static_cast<Scalar>(expert) != number)
        throw_invalid("the table gives id ", id, " the expert ", number, ", which is no whole number");
      if (expert < 0 || expert >= experts)
        throw_invalid("the table gives id ", id, " the expert ", expert, ", of E = ", experts);
      if (std::find(row, row + j, number) != row + j)
        throw_invalid("the table gives id ", id, " the expert ", expert, " twice");
    }
  }

  parameter<Scalar> table_;  // whole numbers
  id_source source_;
};

/// sluice::hash_router<float> router(sluice::no_gate<float>(64, 8), sluice::balanced_hash(counts, 8));
template <FloatOrDouble Scalar, typename GateType = no_gate<Scalar>, typename Weights = even_weights<Scalar>,
          typename Capacity = dropless, index_t Experts = dynamic>
class hash_router
    : public token_choice_router<GateType, hash_rule<Scalar, Weights>, no_noise<Scalar>, Capacity, Experts> {
  using base = token_choice_router<GateType, hash_rule<Scalar, Weights>, no_noise<Scalar>, Capacity, Experts>;

public:
  hash_router(GateType gate, hash_rule<Scalar, Weights> rule, Capacity capacity = {})
      : base(std::move(gate), std::move(rule), {}, std::move(capacity)) {}
};

static_assert(explain_choice_rule<hash_rule<float>, float>());
static_assert(DifferentiableRouter<hash_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
