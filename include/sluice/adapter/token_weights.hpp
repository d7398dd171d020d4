/// The weights of a plan as a matrix W [T,E], for experts so small that all of them together are one product.
///
///   spread   W[t,e] = weight(i) * input_scale(i) of the row i that takes token t to expert e, else 0
///   gather   dweight(i) = input_scale(i) * dW[t,e];  dinput_scale(i) = weight(i) * dW[t,e]
///
/// The experts have to be linear in x, for which it is all the same whether the token or the output is multiplied. Rows
/// that were gathered before are tokens of one expert each. Tokens without rows (padding, NaN) are not to be read:
/// for_each_run goes through the others.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/routed_rows.hpp>

#include <cstdint>

namespace sluice::inline SLUICE_ISA {

template <typename Scalar>
class token_weights {
public:
  /// Throws std::invalid_argument if outputs go elsewhere than to their tokens.
  void spread(const routed_rows<Scalar>& rows, index_t tokens) {
    if (rows.targets != nullptr)
      throw_invalid(
          "experts that run all at once add to the tokens that they read, and rows have targets of their own");
    weights_.set_zero(tokens, rows.experts());
    has_rows_.assign(tokens, 0);
    for (const auto& [expert, begin, end] : rows.by_expert)
      for (index_t i = begin; i < end; ++i) {
        weights_(rows.token(i), expert) = rows.weight(i) * rows.input_scale(i);
        has_rows_[rows.token(i)] = 1;
      }
  }

  index_t tokens() const noexcept { return weights_.rows(); }
  const Scalar* row(index_t token) const noexcept { return weights_.row(token); }

  /// f(begin, end) for every maximal run of tokens that have rows.
  template <typename F>
  void for_each_run(F&& f) const {
    for (index_t t = 0; t < tokens(); ++t) {
      if (has_rows_[t] == 0) continue;
      const index_t begin = t;
      while (t < tokens() && has_rows_[t] != 0) ++t;
      f(begin, t);
    }
  }

  /// Writes where the pointers are not null.
  static void gather(const routed_rows<Scalar>& rows, const matrix_buffer<Scalar>& dweights, Scalar* dweight,
                     Scalar* dinput_scale) {
    for (const auto& [expert, begin, end] : rows.by_expert)
      for (index_t i = begin; i < end; ++i) {
        const Scalar g = dweights(rows.token(i), expert);
        if (dweight != nullptr) dweight[i] = rows.input_scale(i) * g;
        if (dinput_scale != nullptr) dinput_scale[i] = rows.weight(i) * g;
      }
  }

private:
  matrix_buffer<Scalar> weights_;
  buffer<std::uint8_t> has_rows_;
};

}  // namespace sluice::inline SLUICE_ISA
