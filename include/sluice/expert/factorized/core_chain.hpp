/// Matrices of E experts as chains of small cores (matrix product operators), the central one shared by all experts.
///
///   W_e[(r_1..r_n),(c_1..c_n)] = T_1[r_1,c_1] T_2[r_2,c_2] .. T_n[r_n,c_n]         W_e [rows, columns]
///   T_k [E, d_k, R_k C_k, d_(k+1)]  the centre [d, R C, d']    d_1 = d_(n+1) = 1,  rows = prod R_k, columns = prod C_k
///
/// Indices are mixed-radix numbers, the first digit most significant. Bonds d as large as full_bonds says hold any
/// matrix; smaller ones a part of them. The centre is nearly all of a chain's numbers: E experts take little more than
/// one.
///
/// W_e is computed in two products: what stands left of the centre and what stands right of it are short chains, the
/// ends (prefixes L_k and suffixes R_k); and for every pair s = (r, c) of the centre's indices, on its own,
///
///   W_e[.. s ..] = L (C_s R)         L [left, d]   C_s [d, d']   R [d', right]
///   with G = dW_e[.. s ..]:  dC_s += L^T (G R^T) of every expert;  dL += (G R^T) C_s^T;  dR += C_s^T (L^T G)
///
/// matrix_product.hpp makes experts of two such matrices. Gao et al. 2022, "Parameter-Efficient Mixture-of-Experts
/// Architecture for Pre-trained Language Models", arXiv:2203.01104.
#pragma once

#include <sluice/core/checked_size.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/simd.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline index_t product_of(std::span<const index_t> factors) {
  index_t product = 1;
  for (const index_t factor : factors) product = checked_product(product, factor);
  return product;
}

}  // namespace detail

/// Bonds that hold every matrix of these factors, d_k = min(product of R C before k, product from k on), none larger
/// than `limit`.
inline std::vector<index_t> full_bonds(std::span<const index_t> rows, std::span<const index_t> columns,
                                       index_t limit = 30000) {
  std::vector<index_t> bonds{1};
  for (std::size_t k = 1; k <= rows.size(); ++k) {
    const index_t before = detail::product_of(rows.first(k)) * detail::product_of(columns.first(k));
    const index_t after = detail::product_of(rows.subspan(k)) * detail::product_of(columns.subspan(k));
    bonds.push_back((std::min)({before, after, limit}));
  }
  return bonds;
}

template <FloatOrDouble Scalar>
class core_chain {
public:
  /// R_k, C_k and d_k; `centre` counts cores from 0. Throws std::invalid_argument if they do not fit.
  core_chain(index_t experts, std::vector<index_t> rows, std::vector<index_t> columns, std::vector<index_t> bonds,
             index_t centre)
      : experts_(experts),
        centre_(as_size(centre)),
        row_factors_(std::move(rows)),
        column_factors_(std::move(columns)),
        bonds_(std::move(bonds)) {
    check_shape();
    rows_ = detail::product_of(row_factors_);
    columns_ = detail::product_of(column_factors_);
    for (std::size_t k = 0; k < cores(); ++k) {
      // All deviations together: numbers of W have deviation 1/sqrt(columns).
      const double share = std::pow(static_cast<double>(columns_), -0.5 / static_cast<double>(cores()));
      const auto initial = initial_values::normal(share / std::sqrt(static_cast<double>(bonds_[k])));
      const index_t digits = row_factors_[k] * column_factors_[k];
      cores_.push_back(
          k == centre_
              ? parameter<Scalar>({bonds_[k], digits, bonds_[k + 1]}, parameter_role::weight, initial)
              : parameter<Scalar>({experts, bonds_[k], digits, bonds_[k + 1]}, parameter_role::weight, initial));
    }
    lay_out_ends();
  }

  index_t experts() const noexcept { return experts_; }
  index_t rows() const noexcept { return rows_; }
  index_t columns() const noexcept { return columns_; }
  std::size_t cores() const noexcept { return row_factors_.size(); }
  std::size_t centre() const noexcept { return centre_; }
  std::span<const index_t> row_factors() const noexcept { return row_factors_; }
  std::span<const index_t> column_factors() const noexcept { return column_factors_; }
  std::span<const index_t> bonds() const noexcept { return bonds_; }
  parameter<Scalar>& core(std::size_t k) noexcept { return cores_[k]; }
  const parameter<Scalar>& core(std::size_t k) const noexcept { return cores_[k]; }
  /// Numbers of a core of one expert; of the centre, all.
  Scalar* core_of(std::size_t k, index_t expert) noexcept { return cores_[k].data() + core_place(k, expert); }
  const Scalar* core_of(std::size_t k, index_t expert) const noexcept {
    return cores_[k].data() + core_place(k, expert);
  }

  // ---- one expert's matrix ------------------------------------------------------------------------------------------

  /// Pairs of the centre's indices: as many independent parts of a matrix.
  index_t pairs() const noexcept { return row_factors_[centre_] * column_factors_[centre_]; }
  /// Numbers that one expert's ends take, that the gradients of L and R take, those of C_s, and what a task needs as
  /// scratch.
  index_t end_numbers() const noexcept { return end_numbers_; }
  index_t outer_numbers() const noexcept { return left() * bonds_[centre_] + bonds_[centre_ + 1] * right(); }
  index_t centre_numbers() const noexcept { return bonds_[centre_] * bonds_[centre_ + 1]; }
  index_t scratch_numbers() const noexcept {
    return left() * (std::max)(right(), bonds_[centre_ + 1]) +
           (std::max)(bonds_[centre_] * right(), left() * bonds_[centre_ + 1]);
  }
  /// Multiplications of one pair, or of the ends.
  index_t pair_work() const noexcept { return bonds_[centre_] * right() * (bonds_[centre_ + 1] + left()); }

  /// Prefixes, suffixes, and the last suffix again, its columns in such an order that rows of W are adjacent.
  void compute_ends(index_t expert, Scalar* ends) const {
    ends[prefix_[0]] = 1;
    for (std::size_t k = 0; k < centre_; ++k) {
      const index_t width = slice(k);
      kernel::multiply_nn(before_[k], width, bonds_[k], ends + prefix_[k], bonds_[k], core_of(k, expert), width,
                          ends + prefix_[k + 1], width);
    }
    ends[suffix_[cores()]] = 1;
    for (std::size_t k = cores(); k-- > centre_ + 1;)
      kernel::multiply_nn(slice(k) / bonds_[k + 1] * bonds_[k], after_[k + 1], bonds_[k + 1], core_of(k, expert),
                          bonds_[k + 1], ends + suffix_[k + 1], after_[k + 1], ends + suffix_[k], after_[k + 1]);
    const Scalar* last = ends + suffix_[centre_ + 1];
    const index_t next = bonds_[centre_ + 1];
    for (index_t b = 0; b < next; ++b)
      for (index_t i = 0; i < right(); ++i) {
        const index_t place = turned_place_[as_size(i)];
        ends[turned_ + b * right() + place] = ends[transposed_ + place * next + b] = last[b * right() + i];
      }
  }

  /// C_s without gaps (rows of the centre are often a power of two apart, which caches do not like), and its transpose.
  void copy_centre(index_t s, Scalar* to) const {
    const index_t next = bonds_[centre_ + 1];
    for (index_t b = 0; b < bonds_[centre_]; ++b) std::copy_n(centre_row(s, b), next, to + b * next);
  }
  void transpose_centre(index_t s, Scalar* to) const {
    const index_t d = bonds_[centre_], next = bonds_[centre_ + 1];
    for (index_t b = 0; b < d; ++b)
      for (index_t i = 0; i < next; ++i) to[i * d + b] = centre_row(s, b)[i];
  }

  /// Writes one pair's part of the matrix into its panels; C is what copy_centre wrote.
  void compute_pair(index_t s, const Scalar* C, const Scalar* ends, Scalar* panels, Scalar* scratch) const {
    const index_t d = bonds_[centre_], next = bonds_[centre_ + 1];
    Scalar* const inner = scratch;
    Scalar* const part = scratch + d * right();
    kernel::multiply_nn(d, right(), next, C, next, ends + turned_, right(), inner, right());
    for (index_t first = 0; first < left(); first += row_block) {
      const index_t count = (std::min)(row_block, left() - first);
      kernel::multiply_nn(count, right(), d, ends + prefix_[centre_] + first * d, d, inner, right(), part, right());
      for (index_t i = 0; i < count; ++i)
        for_runs(s, first + i, part + i * right(),
                 [&](index_t place, const Scalar* from, index_t run) { move(from, panels + place, run); });
    }
  }

  /// Adds to the gradient of the centre and to those of L and of the turned R, [left, d] and [d', right].
  void add_pair_gradient(index_t s, const Scalar* C, const Scalar* turned_C, const Scalar* ends, const Scalar* dpanels,
                         Scalar* outer, Scalar* scratch) {
    const index_t d = bonds_[centre_], next = bonds_[centre_ + 1];
    const Scalar* const L = ends + prefix_[centre_];
    Scalar* const part = scratch;
    Scalar* const inner = scratch + left() * (std::max)(right(), next);
    for (index_t i = 0; i < left(); ++i)
      for_runs(s, i, part + i * right(),
               [&](index_t place, Scalar* to, index_t run) { move(dpanels + place, to, run); });
    kernel::multiply_tn(d, right(), left(), L, d, part, right(), inner, right());
    kernel::multiply_tn(next, right(), d, C, next, inner, right(), outer + left() * d, right(),
                        kernel::write::accumulate);
    kernel::multiply_nn(left(), next, right(), part, right(), ends + transposed_, next, inner, next);
    kernel::multiply_nn(left(), d, next, inner, next, turned_C, d, outer, d, kernel::write::accumulate);
    if (cores_[centre_].is_learned())
      kernel::multiply_tn(d, next, left(), L, d, inner, next, cores_[centre_].gradient().data() + s * next,
                          slice(centre_), kernel::write::accumulate);
  }

  /// Adds to the gradients of an expert's own cores, from those of L and R; dends has the ends' layout, for scratch.
  void add_end_gradients(index_t expert, const Scalar* ends, const Scalar* outer, Scalar* dends) {
    std::copy_n(outer, left() * bonds_[centre_], dends + prefix_[centre_]);
    for (std::size_t k = centre_; k-- > 0;) {
      const index_t width = slice(k);
      const Scalar* const after = dends + prefix_[k + 1];
      kernel::multiply_tn(bonds_[k], width, before_[k], ends + prefix_[k], bonds_[k], after, width,
                          gradient_of(k, expert), width, kernel::write::accumulate);
      kernel::multiply_nt(before_[k], bonds_[k], width, after, width, core_of(k, expert), width, dends + prefix_[k],
                          bonds_[k]);
    }
    const Scalar* const turned = outer + left() * bonds_[centre_];
    for (index_t b = 0; b < bonds_[centre_ + 1]; ++b)
      for (index_t i = 0; i < right(); ++i)
        dends[suffix_[centre_ + 1] + b * right() + i] = turned[b * right() + turned_place_[as_size(i)]];
    for (std::size_t k = centre_ + 1; k < cores(); ++k) {
      const index_t height = slice(k) / bonds_[k + 1] * bonds_[k];
      kernel::multiply_nt(height, bonds_[k + 1], after_[k + 1], dends + suffix_[k], after_[k + 1],
                          ends + suffix_[k + 1], after_[k + 1], gradient_of(k, expert), bonds_[k + 1],
                          kernel::write::accumulate);
      kernel::multiply_tn(bonds_[k + 1], after_[k + 1], height, core_of(k, expert), bonds_[k + 1], dends + suffix_[k],
                          after_[k + 1], dends + suffix_[k + 1], after_[k + 1]);
    }
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    for (std::size_t k = 0; k < self.cores(); ++k) visit("core." + std::to_string(k), self.cores_[k]);
  }

private:
  static constexpr index_t lanes = kernel::simd_width<Scalar>;
  static constexpr index_t row_block = 32;

  void check_shape() const {
    const std::size_t n = row_factors_.size();
    if (experts_ < 1 || n == 0 || centre_ >= n)
      throw_invalid("a chain of ", n, " cores for E = ", experts_, " cannot have centre ", centre_);
    if (column_factors_.size() != n || bonds_.size() != n + 1)
      throw_invalid("a chain of ", n, " row factors needs as many column factors and one bond more, not ",
                    column_factors_.size(), " and ", bonds_.size());
    for (const auto* numbers : {&row_factors_, &column_factors_, &bonds_})
      for (const index_t number : *numbers)
        if (number < 1) throw_invalid("factors and bonds of a chain are at least 1, not ", number);
    if (bonds_.front() != 1 || bonds_.back() != 1)
      throw_invalid("a chain begins and ends with bond 1, not with ", bonds_.front(), " and ", bonds_.back());
  }

  index_t left() const noexcept { return before_[centre_]; }
  index_t right() const noexcept { return after_[centre_ + 1]; }
  /// Numbers of a core for one index of its first bond.
  index_t slice(std::size_t k) const noexcept { return row_factors_[k] * column_factors_[k] * bonds_[k + 1]; }
  const Scalar* centre_row(index_t s, index_t b) const noexcept {
    return cores_[centre_].data() + b * slice(centre_) + s * bonds_[centre_ + 1];
  }
  index_t core_place(std::size_t k, index_t expert) const noexcept {
    return k == centre_ ? 0 : expert * bonds_[k] * slice(k);
  }
  Scalar* gradient_of(std::size_t k, index_t expert) { return cores_[k].gradient().data() + core_place(k, expert); }

  void lay_out_ends() {
    const std::size_t n = cores();
    before_.assign(n + 1, 1);
    after_.assign(n + 1, 1);
    for (std::size_t k = 0; k < n; ++k) before_[k + 1] = before_[k] * row_factors_[k] * column_factors_[k];
    for (std::size_t k = n; k-- > 0;) after_[k] = after_[k + 1] * row_factors_[k] * column_factors_[k];
    prefix_.assign(n + 1, 0);
    suffix_.assign(n + 1, 0);
    for (std::size_t k = 0; k <= centre_; ++k)
      prefix_[k] = std::exchange(end_numbers_, end_numbers_ + before_[k] * bonds_[k]);
    for (std::size_t k = n; k > centre_; --k)
      suffix_[k] = std::exchange(end_numbers_, end_numbers_ + bonds_[k] * after_[k]);
    for (index_t* turned : {&turned_, &transposed_})
      *turned = std::exchange(end_numbers_, end_numbers_ + bonds_[centre_ + 1] * after_[centre_ + 1]);
    const std::span<const index_t> r = row_factors_, c = column_factors_;
    left_places_ = places(r.first(centre_), c.first(centre_));
    right_rows_ = detail::product_of(r.subspan(centre_ + 1));
    right_columns_ = detail::product_of(c.subspan(centre_ + 1));
    for (const auto& [row, column] : places(r.subspan(centre_ + 1), c.subspan(centre_ + 1)))
      turned_place_.push_back(column * right_rows_ + row);
  }

  /// Row and column number of every (r, c, r', c', ..).
  static std::vector<std::pair<index_t, index_t>> places(std::span<const index_t> r, std::span<const index_t> c) {
    std::vector<std::pair<index_t, index_t>> all{{0, 0}};
    for (std::size_t k = 0; k < r.size(); ++k) {
      std::vector<std::pair<index_t, index_t>> longer;
      for (const auto& [row, column] : all)
        for (index_t i = 0; i < r[k]; ++i)
          for (index_t j = 0; j < c[k]; ++j) longer.emplace_back(row * r[k] + i, column * c[k] + j);
      all.swap(longer);
    }
    return all;
  }

  /// f(place in the panels, place in `numbers`, length) for the adjacent numbers of one row of a pair's part.
  template <typename Number, typename F>
  void for_runs(index_t s, index_t i, Number* numbers, F&& f) const {
    const auto [row, column] = left_places_[as_size(i)];
    const index_t width = column_factors_[centre_];
    const index_t first_row = (row * row_factors_[centre_] + s / width) * right_rows_;
    const index_t first_column = (column * width + s % width) * right_columns_;
    for (index_t done = 0; done < right_rows_;) {
      const index_t r = first_row + done, lane = r % lanes, run = (std::min)(lanes - lane, right_rows_ - done);
      const index_t place = r / lanes * lanes * columns_ + lane + first_column * lanes;
      for (index_t j = 0; j < right_columns_; ++j) f(place + j * lanes, numbers + j * right_rows_ + done, run);
      done += run;
    }
  }
  static void move(const Scalar* from, Scalar* to, index_t count) {
    if (count == lanes)
      kernel::store<Scalar>(to, kernel::load(from));
    else
      kernel::store_part<Scalar>(to, kernel::load_part(from, count, Scalar(0)), count);
  }

  index_t experts_, rows_ = 0, columns_ = 0;
  std::size_t centre_;
  std::vector<index_t> row_factors_, column_factors_, bonds_;
  std::vector<parameter<Scalar>> cores_;
  std::vector<index_t> before_, after_;   ///< products of R C before a core, and from it on
  std::vector<index_t> prefix_, suffix_;  ///< where L_k and R_k lie among the ends
  index_t turned_ = 0, transposed_ = 0;   ///< the last suffix in compute_pair's order, and its transpose
  index_t end_numbers_ = 0;
  std::vector<std::pair<index_t, index_t>> left_places_;
  std::vector<index_t> turned_place_;
  index_t right_rows_ = 1, right_columns_ = 1;
};

}  // namespace sluice::inline SLUICE_ISA
