/// What a layer makes sure of before it runs: that its tape is the right one, and that outputs do not lie in inputs.
///
///   forward_record   in every workspace and tape: which layer ran a training forward call on it last, if it still holds that call
///                    and for which layer it has seen that all parameters have values
///   check_forward    shapes; y may be x itself, row for row: forward then works in place; any other overlap is refused
///   check_backward   shapes; dx may share nothing with dy
///
/// All of it costs a few comparisons a call. What it refuses would be silently wrong, or outside the memory of the
/// tape.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/types.hpp>

#include <cstdint>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

class forward_record {
public:
  forward_record() = default;
  forward_record(const forward_record&) = default;
  forward_record& operator=(const forward_record&) = default;
  /// What a tape kept moves away with its memory.
  forward_record(forward_record&& other) noexcept
      : layer_(std::exchange(other.layer_, nullptr)), rows_(other.rows_) {}
  forward_record& operator=(forward_record&& other) noexcept {
    layer_ = std::exchange(other.layer_, nullptr);
    rows_ = other.rows_;
    return *this;
  }

  /// Every call on the memory begins so: until a training forward call has ended there is nothing to go back to.
  void forget() noexcept { layer_ = nullptr; }
  /// A training forward call of this layer has ended; its plan, if it has one of its own, has so many rows.
  void keep(const void* layer, index_t rows = 0) noexcept {
    layer_ = layer;
    rows_ = rows;
  }

  /// Throws std::invalid_argument unless the last call was a training forward call of this layer with such a plan.
  void validate(const void* layer, index_t rows = 0) const {
    if (layer_ == nullptr)
      throw_invalid(
          "backward needs a training forward call with the same tape just before it: forward(x, y, tape) of this "
          "layer, that has returned, and nothing else on the tape since");
    if (layer_ != layer)
      throw_invalid("backward needs a tape of its own layer: the last forward call with this tape was another layer's");
    if (rows_ != rows)
      throw_invalid("the tape's plan had ", rows_, " rows when its experts ran and has ", rows,
                    " now: backward needs the plan as forward left it");
  }

  /// Throws std::invalid_argument if nobody has initialised a parameter of the layer. Looks at each layer once.
  template <typename Layer>
  void check_values(const Layer& layer) {
    if (initialized_ == &layer) return;
    check_initialized(layer);
    initialized_ = &layer;
  }

private:
  const void* layer_ = nullptr;
  const void* initialized_ = nullptr;
  index_t rows_ = 0;
};

/// Whether two matrices with equally many rows share a number. Columns of one matrix side by side do not.
template <typename Scalar>
bool share_memory(tokens_in<Scalar> a, tokens_in<Scalar> b) {
  if (a.rows() == 0 || a.cols() == 0 || b.cols() == 0) return false;
  const auto place = [](const Scalar* p) { return static_cast<std::intptr_t>(reinterpret_cast<std::uintptr_t>(p)); };
  const index_t apart = place(b.data()) - place(a.data());  // in bytes
  const auto bytes = [](index_t numbers) { return numbers * static_cast<index_t>(sizeof(Scalar)); };
  const auto extent_of = [&](tokens_in<Scalar> m) { return bytes((m.rows() - 1) * m.outerStride() + m.cols()); };
  if (apart >= extent_of(a) || -apart >= extent_of(b)) return false;
  if (a.rows() == 1 || a.outerStride() != b.outerStride()) return true;
  // Equal strides: row r of b begins `column` bytes into row r + shift of a, and may reach into the one after it.
  const index_t stride = bytes(a.outerStride());
  const index_t shift = apart >= 0 ? apart / stride : -((stride - 1 - apart) / stride);
  const index_t column = apart - shift * stride;
  const auto meets = [&](index_t rows_between) { return rows_between < a.rows() && -rows_between < a.rows(); };
  return (column < bytes(a.cols()) && meets(shift)) || (column + bytes(b.cols()) > stride && meets(shift + 1));
}

/// How wide the tokens are that a layer takes and makes.
struct token_widths {
  index_t inputs, outputs;
};

template <typename Scalar>
void check_forward(const token_widths& layer, tokens_in<Scalar> x, tokens_in<Scalar> y,
                   const routing_context<Scalar>& context) {
  if (x.cols() != layer.inputs || y.rows() != x.rows() || y.cols() != layer.outputs)
    throw_invalid("the layer maps [T, ", layer.inputs, "] to [T, ", layer.outputs, "]; x is [", x.rows(), ", ",
                  x.cols(), "] and y [", y.rows(), ", ", y.cols(), "]");
  const bool is_in_place =
      x.data() == y.data() && x.cols() == y.cols() && (x.rows() < 2 || x.outerStride() == y.outerStride());
  if (!is_in_place && share_memory<Scalar>(x, y))
    throw_invalid("y shares a part of its memory with x: forward writes over x as a whole (y is x) or not at all");
  check_context(context, x.rows());
}

/// `tokens` is the T of the forward call.
template <typename Scalar>
void check_backward(const token_widths& layer, tokens_in<Scalar> dy, tokens_in<Scalar> dx, index_t tokens) {
  if (dy.rows() != tokens || dy.cols() != layer.outputs || dx.rows() != tokens || dx.cols() != layer.inputs)
    throw_invalid("backward needs dy [", tokens, ", ", layer.outputs, "] and dx [", tokens, ", ", layer.inputs,
                  "], not [", dy.rows(), ", ", dy.cols(), "] and [", dx.rows(), ", ", dx.cols(), "]");
  if (share_memory<Scalar>(dy, dx))
    throw_invalid("dx shares memory with dy: backward reads dy to its end and cannot write over it");
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
