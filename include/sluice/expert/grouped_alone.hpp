/// Makes a feed-forward expert of linear maps an expert functor: what a bank does with many, for one.
///
/// forward and backward of a single expert take memory of their own for the call, and backward runs forward again. A
/// layer or a bank does neither.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/expert/grouped_backward.hpp>
#include <sluice/expert/grouped_forward.hpp>

#include <array>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// A vector parameter that kernels may load by whole vectors.
template <typename Scalar>
parameter<Scalar> vector_in_lanes(index_t size, initial_values initial = {}) {
  return {{size}, parameter_role::vector, initial, {.lanes = kernel::simd_width<Scalar>}};
}

}  // namespace detail

template <typename Expert, typename Scalar>
class grouped_expert {
public:
  index_t saved_columns() const noexcept { return 0; }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar>) const {
    detail::grouped_memory<Expert> memory;
    memory.keep = false;
    run_forward(x, y, memory);
  }

  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar>, tokens_out<Scalar> dx) {
    auto& self = static_cast<Expert&>(*this);
    detail::grouped_memory<Expert> memory;
    matrix<Scalar> y(x.rows(), self.outputs());
    run_forward(x, y, memory);
    dx.setZero();
    const std::array<index_t, 2> offsets{0, x.rows()};
    const auto expert_of = [&](index_t) -> Expert& { return self; };
    ensure_gradients(self);
    detail::grouped_backward<Expert>({.by_expert = offsets}, expert_of, self.inputs(), self.outputs(), memory, {})
        .run(x, dy, dx, nullptr, nullptr, expert_of);
  }

private:
  void run_forward(tokens_in<Scalar> x, tokens_out<Scalar> y, detail::grouped_memory<Expert>& memory) const {
    const auto& self = static_cast<const Expert&>(*this);
    const std::array<index_t, 2> offsets{0, x.rows()};
    const auto expert_of = [&](index_t) -> const Expert& { return self; };
    detail::grouped_forward<Expert>({.by_expert = offsets}, expert_of, self.inputs(), self.outputs(), memory, {})
        .run(x, y, expert_of);
  }
};

}  // namespace sluice::inline SLUICE_ISA
