/// What layers share that run another layer beside the mixture: the other layer, its calls, its memory.
///
/// Derived is a layer_decorator around the mixture (layer/decorator.hpp), whose plan, router and bank the whole shows.
/// It writes around and around_backward, which find the other layer as other(), its memory as memory.other and its
/// context as beside(context): draws of its own. A tape's loss() is both layers'. layer/beside.hpp is the shortest.
#pragma once

#include <sluice/layer/decorator.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Memory>
inline constexpr bool has_loss = requires(const Memory& memory) { memory.loss(); };

template <typename OtherMemory, typename Own>
struct branch_memory : Own {
  OtherMemory other;

  auto loss() const requires(has_loss<OtherMemory> || has_loss<Own>) {
    if constexpr (has_loss<OtherMemory> && has_loss<Own>)
      return other.loss() + Own::loss();
    else if constexpr (has_loss<Own>)
      return Own::loss();
    else
      return other.loss();
  }
};

}  // namespace detail

template <typename Derived, typename Layer, typename Other, typename OwnWorkspace, typename OwnTape = OwnWorkspace>
class two_branches
    : public layer_decorator<Derived, Layer, detail::branch_memory<typename Other::workspace, OwnWorkspace>,
                             detail::branch_memory<typename Other::tape, OwnTape>, TrainableLayer<Other>> {
  static_assert(explain_layer<Other>());
  static_assert(std::same_as<typename Layer::scalar, typename Other::scalar>,
                "sluice: layers side by side need the same scalar");

protected:
  using decorator = layer_decorator<Derived, Layer, detail::branch_memory<typename Other::workspace, OwnWorkspace>,
                                    detail::branch_memory<typename Other::tape, OwnTape>, TrainableLayer<Other>>;

public:
  using typename decorator::context_type;
  using typename decorator::scalar;
  using typename decorator::tape;
  static constexpr bool causal = is_causal<Layer> && is_causal<Other>;
  static constexpr bool mixes_tokens = is_token_mixer<Layer> || is_token_mixer<Other>;

  two_branches(Layer layer, Other other) : decorator(std::move(layer)), other_(std::move(other)) {}

  Other& other() noexcept { return other_; }
  const Other& other() const noexcept { return other_; }

  void after_step(tape& t) {
    decorator::after_step(t);
    other_.after_step(t.other);
  }

  static consteval bool explain_training() { return decorator::explain_training() && explain_trainable_layer<Other>(); }

protected:
  /// Throws std::invalid_argument if the widths differ.
  void require_equal_widths() const {
    const Layer& layer = this->layer();
    if (other_.inputs() != layer.inputs() || other_.outputs() != layer.outputs())
      throw_invalid("layers side by side need equal widths: ", layer.inputs(), " -> ", layer.outputs(), " and ",
                    other_.inputs(), " -> ", other_.outputs());
  }

  /// Bytes of the other layer and of so many matrices of what layers put out.
  index_t branch_bytes(index_t tokens, bool training, index_t matrices) const {
    return other_.workspace_bytes(tokens, training) +
           matrices * tokens * this->outputs() * static_cast<index_t>(sizeof(scalar));
  }

  static context_type beside(const context_type& context) { return context.for_layer(-1); }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    if constexpr (HasParameters<Other>) visit("other", self.other());
  }

private:
  Other other_;
};

}  // namespace sluice::inline SLUICE_ISA
