/// What wrappers with a norm share, whether it stands before a layer (layer/normalized.hpp) or behind it
/// (layer/output_normalized.hpp): the norm itself, its parameters, its bytes, and how they convert.
///
/// Wrapper<Layer, Norm> derives from it and writes around and around_backward (layer/decorator.hpp).
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/layer/decorator.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <template <typename, typename> class Wrapper, typename Layer, typename Norm, typename OwnWorkspace,
          typename OwnTape>
class norm_decorator : public layer_decorator<Wrapper<Layer, Norm>, Layer, OwnWorkspace, OwnTape> {
  static_assert(explain_row_norm<Norm>());

protected:
  using decorator = layer_decorator<Wrapper<Layer, Norm>, Layer, OwnWorkspace, OwnTape>;
  static_assert(std::same_as<typename decorator::scalar, typename Norm::scalar>,
                "sluice: layer and norm need the same scalar");

public:
  norm_decorator(Layer layer, Norm norm) : decorator(std::move(layer)), norm_(std::move(norm)) {}

  Norm& norm() noexcept { return norm_; }
  const Norm& norm() const noexcept { return norm_; }

protected:
  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    return Wrapper<Inner, Norm>(std::move(inner), norm_);
  }

  /// One matrix of what is normalised or was, in training three.
  index_t own_bytes(index_t tokens, bool training) const {
    const index_t width = (std::max)(this->inputs(), this->outputs());
    return tokens * width * static_cast<index_t>(sizeof(typename decorator::scalar)) * (training ? 3 : 1);
  }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    if constexpr (HasParameters<Norm>) visit("norm", self.norm());
  }

private:
  Norm norm_;
};

}  // namespace sluice::inline SLUICE_ISA
