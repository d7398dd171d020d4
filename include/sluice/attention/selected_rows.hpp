/// Which rows of heads a routing plan gives its tokens, and which of them see each other.
///
///   own_tokens   a row an assignment: expert by expert, of each sequence by sequence, ascending by token
///   all_tokens   a row a token, which has one expert at most
///   place[i]     the row of assignment i                       borders: rows of one range see each other
///
/// Positions are those of the tokens in their sequences. It is what selective_attention.hpp attends by.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/kernel/attention/heads.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// Whom a token looks at: those that chose the same expert, or all of its sequence.
enum class attended { own_tokens, all_tokens };

struct selected_rows {
  buffer<index_t> borders;
  buffer<index_t> positions;   ///< a row's
  buffer<std::uint8_t> taken;  ///< of all_tokens: whether the row's token has an expert; else empty

  index_t count() const noexcept { return positions.size(); }

  /// Also makes room for as many ranges as batches of this size may have. Throws std::invalid_argument if a token has
  /// several experts where all tokens are attended.
  template <FloatOrDouble Scalar>
  void lay_out(const sparse_plan<Scalar>& plan, attended among, const routing_context<Scalar>& context,
               buffer<index_t>& places, buffer<kernel::attended_range>& ranges) {
    const bool by_token = among == attended::all_tokens;
    const index_t tokens = plan.tokens(), sequences = context.sequence_count();
    const index_t most_ranges = (by_token ? 1 : plan.experts()) * (std::max)(tokens, sequences);
    ranges.reserve(most_ranges);
    borders.reserve(most_ranges + 1);
    positions.reserve((std::max)(plan.most_rows(), tokens));
    places.reserve(plan.most_rows());
    places.resize(plan.size());
    by_token ? give_tokens_rows(plan, context, places) : give_experts_rows(plan, context, places);
  }

private:
  template <FloatOrDouble Scalar>
  void give_tokens_rows(const sparse_plan<Scalar>& plan, const routing_context<Scalar>& context,
                        buffer<index_t>& places) {
    positions.resize(plan.tokens());
    taken.assign(plan.tokens(), 0);
    borders.assign(1, 0);
    for (index_t s = 0; s < context.sequence_count(); ++s) {
      const token_range own = context.sequence(s, plan.tokens());
      borders.push_back(own.end);
      for (index_t t = own.begin; t < own.end; ++t) positions[t] = t - own.begin;
    }
    for_each_choice(plan, context, [&](index_t, index_t, index_t i) {
      const index_t t = plan.token(i);
      if (taken[t] != 0)
        throw_invalid("token ", t, " has several experts: one at most where all tokens of a sequence are attended");
      taken[t] = 1;
      places[i] = t;
    });
  }

  template <FloatOrDouble Scalar>
  void give_experts_rows(const sparse_plan<Scalar>& plan, const routing_context<Scalar>& context,
                         buffer<index_t>& places) {
    const index_t sequences = context.sequence_count();
    positions.resize(plan.size());
    taken.clear();
    // How many rows each expert has of each sequence, then where they begin: a border moves on while rows are given.
    borders.assign(plan.experts() * sequences + 1, 0);
    const auto range_of = [&](index_t expert, index_t sequence) -> index_t& {
      return borders[expert * sequences + sequence];
    };
    for_each_choice(plan, context, [&](index_t s, index_t, index_t i) { ++range_of(plan.expert(i), s); });
    index_t begin = 0;
    for (index_t& border : borders.span()) begin += std::exchange(border, begin);
    for_each_choice(plan, context, [&](index_t s, index_t position, index_t i) {
      const index_t row = range_of(plan.expert(i), s)++;
      places[i] = row;
      positions[row] = position;
    });
    std::copy_backward(borders.begin(), borders.end() - 1, borders.end());
    borders[0] = 0;
  }

  /// f(sequence, position, assignment), token by token.
  template <FloatOrDouble Scalar, typename F>
  static void for_each_choice(const sparse_plan<Scalar>& plan, const routing_context<Scalar>& context, F&& f) {
    for (index_t s = 0; s < context.sequence_count(); ++s) {
      const token_range tokens = context.sequence(s, plan.tokens());
      for (index_t t = tokens.begin; t < tokens.end; ++t)
        for (const index_t i : plan.of_token(t)) f(s, t - tokens.begin, i);
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA
