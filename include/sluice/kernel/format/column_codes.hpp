/// A matrix as VPTQ files hold it: vector codes down the outputs of one column at a time, with parts around them.
///
///   stored column j is input permutation[j];  the first ones are outliers, with codes of their own, then come `main`'s
///   W(o, permutation[j]) = stored(o, j) scale[permutation[j]] + bias[permutation[j]]
///
/// Parts that are empty change nothing. unpack_indices reads the files' streams of bits. to_storable() puts main's
/// columns into the order of the inputs, so that a codebook_storage within changed_columns can hold it, and outliers
/// into sparse weights (kernel/format/sparse_weights.hpp) of the same order. Empty matrices are fine.
/// Paper: Liu et al. 2024, VPTQ.
#pragma once

#include <sluice/kernel/format/sparse_weights.hpp>
#include <sluice/kernel/format/vector_codes.hpp>

#include <cstddef>
#include <span>

namespace sluice::inline SLUICE_ISA {

struct column_codes {
  vector_codes outliers;  ///< [out, outlier columns]
  vector_codes main;      ///< [out, other columns]
  std::vector<index_t> permutation;
  std::vector<float> scale;  ///< [in]
  std::vector<float> bias;   ///< [in]

  index_t outputs() const noexcept { return main.outputs; }
  index_t inputs() const noexcept { return outliers.inputs + main.inputs; }
  index_t input_of(index_t column) const noexcept {
    return permutation.empty() ? column : permutation[as_size(column)];
  }

  matrix<float> to_matrix() const {
    matrix<float> w(outputs(), inputs());
    for (index_t j = 0; j < inputs(); ++j) {
      const index_t i = input_of(j);
      for (index_t o = 0; o < outputs(); ++o) {
        float v = j < outliers.inputs ? outliers.value(o, j) : main.value(o, j - outliers.inputs);
        if (!scale.empty()) v *= scale[as_size(i)];
        w(o, i) = bias.empty() ? v : v + bias[as_size(i)];
      }
    }
    return w;
  }

  /// Throws std::invalid_argument unless the parts fit together.
  void validate() const {
    main.validate();
    if (outliers.inputs > 0) {
      outliers.validate();
      if (outliers.outputs != outputs())
        throw_invalid("outlier columns have ", outliers.outputs, " outputs beside ", outputs());
    }
    for (const auto* part : {&scale, &bias})
      if (!part->empty() && static_cast<index_t>(part->size()) != inputs())
        throw_invalid(part->size(), " numbers for ", inputs(), " inputs");
    if (permutation.empty()) return;
    std::vector<bool> seen(as_size(inputs()));
    for (const index_t i : permutation) {
      if (i < 0 || i >= inputs() || seen[as_size(i)]) throw_invalid("input ", i, " of ", inputs(), " in a permutation");
      seen[as_size(i)] = true;
    }
    if (static_cast<index_t>(permutation.size()) != inputs())
      throw_invalid("a permutation of ", permutation.size(), " for ", inputs(), " inputs");
  }

  /// Codes of all inputs in their order, those of outliers being the first entries, and the outliers. Throws
  /// std::invalid_argument where columns cannot change places: tiles of several, or a codebook for some of them.
  std::pair<vector_codes, sparse_weights> to_storable() const {
    if (main.tile_inputs != 1 || (main.regions() > 1 && !permutation.empty()))
      throw_invalid("columns of ", main.tile_inputs, " inputs a tile in ", main.regions(),
                    " regions stay where they are");
    std::pair<vector_codes, sparse_weights> made{main, {}};
    auto& [codes, rest] = made;
    if (main.regions() > 1 && outliers.inputs > 0)
      throw_invalid("outlier columns would move ", main.regions(), " regions");
    codes.inputs = rest.inputs = inputs();
    std::vector<index_t> column(as_size(inputs()));
    for (index_t j = 0; j < inputs(); ++j) column[as_size(input_of(j))] = j;
    for (index_t m = 0; m < main.stages(); ++m) {
      auto& of = codes.indices[as_size(m)];
      of.setZero(main.tile_rows(), inputs());
      for (index_t i = 0; i < inputs(); ++i)
        if (const index_t j = column[as_size(i)] - outliers.inputs; j >= 0) of.col(i) = main.indices[as_size(m)].col(j);
    }
    for (index_t o = 0; o < outputs(); ++o) {
      for (index_t i = 0; i < inputs(); ++i)
        if (const index_t j = column[as_size(i)]; j < outliers.inputs) {
          rest.input.push_back(static_cast<std::int32_t>(i));
          rest.values.push_back(outliers.value(o, j));
        }
      rest.first.push_back(rest.size());
    }
    return made;
  }
};

/// ids [rows, columns] of `bits` bits each, one after the other from the lowest on, rows in whole words of 32 bits: of
/// every element the lowest `main_bits` are `main`, the others `residual` (null if there are none). Throws
/// std::invalid_argument if sizes do not fit.
inline void unpack_indices(std::span<const std::byte> packed, index_t columns, int main_bits, int residual_bits,
                           matrix<std::uint16_t>& main, matrix<std::uint16_t>* residual) {
  const int bits = main_bits + residual_bits;
  if (main_bits < 1 || main_bits > 16 || residual_bits < 0 || residual_bits > 16 ||
      (residual_bits > 0) != (residual != nullptr))
    throw_invalid("elements of ", main_bits, " and ", residual_bits, " bits");
  const index_t row_bytes = (columns * bits + 31) / 32 * 4;
  if (static_cast<index_t>(packed.size()) != main.rows() * row_bytes)
    throw_invalid(packed.size(), " bytes do not hold ", main.rows(), " rows of ", columns, " elements of ", bits,
                  " bits");
  main.resize(main.rows(), columns);
  if (residual != nullptr) residual->resize(main.rows(), columns);
  for (index_t r = 0; r < main.rows(); ++r) {
    const std::byte* at = packed.data() + r * row_bytes;
    std::uint64_t pending = 0;
    int held = 0;
    for (index_t c = 0; c < columns; ++c) {
      for (; held < bits; held += 8) pending |= std::to_integer<std::uint64_t>(*at++) << held;
      main(r, c) = static_cast<std::uint16_t>(pending & ((1U << main_bits) - 1U));
      if (residual != nullptr)
        (*residual)(r, c) = static_cast<std::uint16_t>(pending >> main_bits & ((1U << residual_bits) - 1U));
      pending >>= bits;
      held -= bits;
    }
  }
}

}  // namespace sluice::inline SLUICE_ISA
