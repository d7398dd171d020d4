/// The context of a layer inside whose tokens are not those of the call: parts of tokens, or items made of them.
///
///   m.own.clear();  m.own.token_mask.resize(n); ...                   what is filled in here, and only that, has views
///   inner(items, outputs, m.own.seen_by(context));                    draws, step, executor, encoders are the call's
///   t.own.follow(t.layer);                                            before backward
///
///   m.own.cut(context, counts, parts)       tokens in parts: masks and ids are repeated, borders stay where they were
///   m.own.cut_rows(context, counts, parts)  rows that are sequences: the same, and each row is a group
///
/// What an encoder says belongs to a sequence of the call: a wrapper whose layer has other sequences takes the encoders
/// out, as cut_rows does where a sequence has two rows that count, and a layer that reads one then refuses the call. k
/// and the vectors of groups are not passed on unless the wrapper puts them in, nor are matrices of tokens. Previous
/// logits, which no router misses where they are not, are refused.
///
/// Its views lie in the workspace or tape that holds it. A tape that was copied has views of its own: follow() lets the
/// tapes inside look at them, which otherwise would look at those of the tape that it was copied from.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/layer/reserve.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

namespace sluice::inline SLUICE_ISA {

class own_context {
public:
  buffer<std::uint8_t> token_mask, protected_tokens;
  buffer<index_t> groups, sequences, token_ids, modality_ids, cluster_ids;

  /// The call had none of them.
  void clear() {
    has_encoders_ = true;
    for (auto* numbers : {&token_mask, &protected_tokens}) numbers->clear();
    for (auto* numbers : {&groups, &sequences, &token_ids, &modality_ids, &cluster_ids}) numbers->clear();
  }

  /// Every token of the call is so many tokens here, hidden if it does not count.
  template <typename Scalar>
  void cut(const routing_context<Scalar>& context, std::span<const std::uint8_t> counts, index_t parts) {
    const auto repeat = [parts](const auto& of_tokens, auto& of_parts) {
      of_parts.resize(static_cast<index_t>(of_tokens.size()) * parts);
      for (index_t i = 0; i < of_parts.size(); ++i) of_parts[i] = of_tokens[as_size(i / parts)];
    };
    repeat(counts, token_mask);
    repeat(context.protected_tokens, protected_tokens);
    repeat(context.token_ids, token_ids);
    repeat(context.modality_ids, modality_ids);
    repeat(context.cluster_ids, cluster_ids);
    lengthen(context.groups, parts, groups);
    lengthen(context.sequences, parts, sequences);
    has_encoders_ = true;
  }

  /// The same for tokens that are a sequence each.
  template <typename Scalar>
  void cut_rows(const routing_context<Scalar>& context, std::span<const std::uint8_t> counts, index_t parts) {
    const auto rows = static_cast<index_t>(counts.size());
    cut(context, counts, parts);
    groups.resize(rows > 0 ? rows + 1 : 0);
    for (index_t r = 0; r < groups.size(); ++r) groups[r] = r * parts;
    sequences.clear();
    for (index_t s = 0; s < context.sequence_count(); ++s) {
      const token_range range = context.sequence(s, rows);
      has_encoders_ &= std::count(counts.begin() + range.begin, counts.begin() + range.end, std::uint8_t(1)) <= 1;
    }
    if (!has_encoders_ || context.encoders.empty()) return;
    const std::array<index_t, 2> all{0, rows};
    lengthen(context.sequence_borders().empty() ? all : context.sequence_borders(), parts, sequences);
  }

  /// The call's context for the other tokens. Throws std::invalid_argument if it has previous logits.
  template <typename Scalar>
  routing_context<Scalar> seen_by(const routing_context<Scalar>& context) {
    if (context.previous_logits)
      throw_invalid("routing_context.previous_logits are of ", context.previous_logits.rows,
                    " tokens, which are not those of the layer inside");
    routing_context<Scalar> own = context.for_other_rows();
    if (!has_encoders_) own.encoders = {};
    each(own, [](auto& view, const auto& numbers, const void*& place) {
      view = numbers.span();
      place = numbers.empty() ? nullptr : numbers.data();
    });
    return own;
  }

  /// Lets every tape inside that looks at what seen_by gave look at what lies here.
  template <typename Memory>
  void follow(Memory& inner) {
    detail::for_each_memory(inner, [&](auto& memory) {
      if constexpr (requires { memory.context.token_mask; })
        each(memory.context, [](auto& view, const auto& numbers, const void* place) {
          if (place != nullptr && view.data() == place) view = numbers.span();
        });
    });
    each(*this, [](const auto&, const auto& numbers, const void*& place) {
      if (place != nullptr) place = numbers.data();
    });
  }

private:
  static void lengthen(std::span<const index_t> borders, index_t parts, buffer<index_t>& of_parts) {
    of_parts.resize(static_cast<index_t>(borders.size()));
    for (index_t i = 0; i < of_parts.size(); ++i) of_parts[i] = borders[as_size(i)] * parts;
  }

  template <typename Views, typename F>
  void each(Views& views, F&& f) {
    f(views.token_mask, token_mask, places_[0]);
    f(views.protected_tokens, protected_tokens, places_[1]);
    f(views.groups, groups, places_[2]);
    f(views.sequences, sequences, places_[3]);
    f(views.token_ids, token_ids, places_[4]);
    f(views.modality_ids, modality_ids, places_[5]);
    f(views.cluster_ids, cluster_ids, places_[6]);
  }

  bool has_encoders_ = true;             ///< whether sequences are the call's
  std::array<const void*, 7> places_{};  ///< where the views lay that seen_by gave
};

}  // namespace sluice::inline SLUICE_ISA
