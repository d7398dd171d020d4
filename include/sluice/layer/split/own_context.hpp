/// The context of a layer inside whose tokens are not those of the call: parts of tokens, or items made of them.
///
///   m.own.clear();  m.own.token_mask.resize(n); ...                   what is filled in here, and only that, has views
///   inner(items, outputs, m.own.seen_by(context));                    draws, step, k, executor are the call's
///   t.own.follow(t.layer);                                            before backward
///
/// Its views lie in the workspace or tape that holds it. A tape that was copied has views of its own: follow() lets the
/// tapes inside look at them, which otherwise would look at those of the tape that it was copied from.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/layer/reserve.hpp>

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
    for (auto* numbers : {&token_mask, &protected_tokens}) numbers->clear();
    for (auto* numbers : {&groups, &sequences, &token_ids, &modality_ids, &cluster_ids}) numbers->clear();
  }

  /// The call's context for the other tokens. Matrices a token or a group are left out: they are not the others'.
  template <typename Scalar>
  routing_context<Scalar> seen_by(const routing_context<Scalar>& context) {
    routing_context<Scalar> own;
    own.training = context.training;
    own.random = context.random;
    own.top_k = context.top_k;
    own.task_id = context.task_id;
    own.step = context.step;
    own.executor = context.executor;
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

  std::array<const void*, 7> places_{};  ///< where the views lay that seen_by gave
};

}  // namespace sluice::inline SLUICE_ISA
