/// Two layers side by side: y = layer(x) + other(x).
///
///   beside_layer both{moe_layer{...}, dense_layer{swiglu<float>{64, 256}}};       dx is the sum of both
///
/// The first layer is the mixture whose plan, router and bank the whole shows; the other may be any layer with the
/// calls of moe_layer, a dense one too, normalised before or behind in its own way (Gemma 4). A shared expert that
/// reads and writes as the experts do is layer/shared_expert.hpp. The calls and the memory rules are those of
/// moe_layer (layer/decorator.hpp); padding gets what the layers give it, zero; a token with NaN gets NaN and changes
/// no other.
#pragma once

#include <sluice/layer/decorator.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Other>
struct beside_workspace {
  typename Other::workspace other;
  matrix_buffer<typename Other::scalar> added;  ///< [T,D'] of the other layer; backward: its dx
};

template <typename Other>
struct beside_tape {
  typename Other::tape other;
  matrix_buffer<typename Other::scalar> added;
};

}  // namespace detail

template <typename Layer, typename Other>
class beside_layer : public layer_decorator<beside_layer<Layer, Other>, Layer, detail::beside_workspace<Other>,
                                            detail::beside_tape<Other>, TrainableLayer<Other>> {
  using base = layer_decorator<beside_layer, Layer, detail::beside_workspace<Other>, detail::beside_tape<Other>,
                               TrainableLayer<Other>>;
  friend base;
  static_assert(std::same_as<typename base::scalar, typename Other::scalar>,
                "sluice: layers side by side need the same scalar");

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument if the widths differ.
  beside_layer(Layer layer, Other other) : base(std::move(layer)), other_(std::move(other)) {
    if (other_.inputs() != this->inputs() || other_.outputs() != this->outputs())
      throw_invalid("layers side by side need equal widths: ", this->inputs(), " -> ", this->outputs(), " and ",
                    other_.inputs(), " -> ", other_.outputs());
  }

  Other& other() noexcept { return other_; }
  const Other& other() const noexcept { return other_; }

  void after_step(tape& t) {
    base::after_step(t);
    other_.after_step(t.other);
  }

  static consteval bool explain_training() {
    return base::explain_training() && explain_trainable_layer<Other>();
  }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    m.added.resize(y.rows(), y.cols());
    other_.forward(x, m.added.map(), m.other, context);  // first: y may be x
    inner(x, y);
    y += m.added.map();
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    inner(dy, dx);
    t.added.resize(dx.rows(), dx.cols());
    other_.backward(dy, t.added.map(), t.other);
    dx += t.added.map();
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    auto other = other_.template stored_as<Storage>();
    return beside_layer<Inner, decltype(other)>(std::move(inner), std::move(other));
  }

  index_t own_bytes(index_t tokens, bool training) const {
    return other_.workspace_bytes(tokens, training) + tokens * this->outputs() * static_cast<index_t>(sizeof(scalar));
  }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    if constexpr (HasParameters<Other>) visit("other", self.other_);
  }

  Other other_;
};

}  // namespace sluice::inline SLUICE_ISA
