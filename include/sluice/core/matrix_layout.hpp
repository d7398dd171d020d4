/// Where the elements of a matrix [rows, cols] are kept: row by row, or in panels that kernels read straight through.
///
///   row-major   place(r, c) = r cols + c
///   panels      L rows make a panel. A panel holds groups of G columns one after another, a group L x G elements:
///               place(r, c) = (r / L) S + (c / G) L G + (r % L) G + c % G,   S = L G ceil(cols / G)
///
/// Of a weight matrix W [out,in], rows are outputs: one vector load in a panel fetches one input's weights to L
/// outputs. What the last panel holds beyond the matrix is stored and stays zero. L is the vector width of the
/// instruction set, so files never contain panels: everything that leaves memory goes element by element, row-major.
#pragma once

#include <sluice/core/checked_size.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

/// Shape of panels; lanes = 0 is row-major.
struct panel_shape {
  index_t lanes = 0;  ///< L
  index_t group = 1;  ///< G
};

class matrix_layout {
public:
  matrix_layout() = default;
  /// Throws std::invalid_argument if a size is negative or the elements are more than a number can say.
  matrix_layout(index_t rows, index_t cols, panel_shape panels = {}) : rows_(rows), cols_(cols), panels_(panels) {
    checked_product(rows, cols);
    if (!is_panelled()) return;
    // Rounded up, rows are at most L times as many and columns at most G times as many.
    const index_t most = checked_product((std::max<index_t>)(rows, 1), (std::max<index_t>)(cols, 1));
    checked_product(most, checked_product(panels.lanes, panels.group));
  }

  index_t rows() const noexcept { return rows_; }
  index_t cols() const noexcept { return cols_; }
  /// Whether elements lie row by row; a column in panels of single elements does, with a few zeros after it.
  bool is_row_major() const noexcept { return !is_panelled() || (cols_ == 1 && panels_.group == 1); }
  panel_shape panels() const noexcept { return panels_; }
  index_t panel_count() const noexcept { return !is_panelled() ? 0 : (rows_ + panels_.lanes - 1) / panels_.lanes; }
  /// Elements of one panel.
  index_t panel_size() const noexcept {
    return panels_.lanes * panels_.group * ((cols_ + panels_.group - 1) / panels_.group);
  }
  /// Elements in memory, with those beyond the matrix.
  index_t stored_size() const noexcept { return !is_panelled() ? rows_ * cols_ : panel_count() * panel_size(); }

  index_t place(index_t r, index_t c) const noexcept { return place_of_row(r) + place_of_column(c); }
  /// The two parts of place(r, c), for loops that keep one of them.
  index_t place_of_row(index_t r) const noexcept {
    if (!is_panelled()) return r * cols_;
    return r / panels_.lanes * panel_size() + r % panels_.lanes * panels_.group;
  }
  index_t place_of_column(index_t c) const noexcept {
    if (!is_panelled()) return c;
    return c / panels_.group * panels_.lanes * panels_.group + c % panels_.group;
  }

  /// Calls f(row-major position, place in memory) for every element of the matrix, row by row.
  template <typename F>
  void for_each_place(F&& f) const {
    for_each_place(0, rows_, f);
  }
  /// The same for some rows.
  template <typename F>
  void for_each_place(index_t first_row, index_t last_row, F&& f) const {
    for (index_t r = first_row; r < last_row; ++r)
      for (index_t c = 0; c < cols_; ++c) f(r * cols_ + c, place(r, c));
  }

private:
  bool is_panelled() const noexcept { return panels_.lanes > 0; }

  index_t rows_ = 0;
  index_t cols_ = 0;
  panel_shape panels_;
};

}  // namespace sluice::inline SLUICE_ISA
