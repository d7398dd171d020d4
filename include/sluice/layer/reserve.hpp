/// Makes the first call warm: after reserve(layer, memory, T, context) no call of up to T tokens on that workspace or
/// tape allocates, nor does after_step, unless it has a larger k, more groups, or an executor of more threads.
///
///   reserve(layer, workspace, 4096);        // forward
///   reserve(layer, tape, 4096);             // forward and backward, and the gradients of the layer
///
/// It runs the layer once on padding, which reaches nothing: memory is taken and nothing else changes but what the
/// workspace or tape kept of an earlier call. The context says what memory depends on besides T: k, groups, the
/// executor's threads, and what the router cannot do without (previous logits, ids); its token mask is not read.
/// backward needs a forward call afterwards. Room is made for every routing of T tokens, which for a router without a
/// fixed k is T E rows: pages that no call touches cost addresses only.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/layer/mixture_layer.hpp>

#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Calls f(memory) for the workspace or tape of a layer, and for those of the layers inside it.
template <typename Memory, typename F>
void for_each_memory(Memory& memory, F&& f) {
  f(memory);
  for_each_inner(memory, [&](auto& inner) { for_each_memory(inner, f); });
}

}  // namespace detail

/// Throws std::invalid_argument if T < 0 or the context does not fit T tokens.
template <typename Layer, typename Memory>
void reserve(Layer& layer, Memory& memory, index_t tokens,
             routing_context<typename Layer::scalar> context = {}) {
  using scalar = typename Layer::scalar;
  if (tokens < 0) throw_invalid("memory cannot be reserved for ", tokens, " tokens");
  const std::vector<std::uint8_t> padding(static_cast<std::size_t>(tokens), 0);
  const matrix<scalar> x = matrix<scalar>::Zero(tokens, layer.inputs());
  matrix<scalar> y(tokens, layer.outputs());
  context.token_mask = padding;
  std::vector<routing_statistics> counters;
  detail::for_each_memory(memory, [&](auto& own) {
    if constexpr (requires { own.statistics; }) counters.push_back(own.statistics);
  });
  if constexpr (std::same_as<Memory, typename Layer::tape>) {
    context.training = true;
    std::as_const(layer).forward(x, y, memory, context);
    if constexpr (TrainableLayer<Layer>) {
      matrix<scalar> dx(tokens, layer.inputs());
      layer.backward(y.setZero(), dx, memory);
    }
  } else {
    std::as_const(layer).forward(x, y, memory, context);
  }
  // The mask ends with this call, and nothing was counted.
  detail::for_each_memory(memory, [&, next = std::size_t(0)](auto& own) mutable {
    if constexpr (requires { own.statistics; }) {
      // Memory that was not there before has counted nothing else. Copied, counters keep the room that they have.
      if (next == counters.size()) counters.emplace_back();
      own.statistics = counters[next++];
    }
    if constexpr (requires { own.record.forget(); }) own.record.forget();
  });
}

}  // namespace sluice::inline SLUICE_ISA
