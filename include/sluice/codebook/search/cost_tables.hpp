/// What every code would cost a query: the sums of M entries are distances, or products, of a query and all that is
/// encoded.
///
///   distance   costs[m,k] = |q[part m] - table[m,k]|^2          a query is as it is, an item as its code: asymmetric
///   product    costs[m,k] = - q[part m] . table[m,k]            the smaller the better, here too
///   between codes   [M,K,K] = |table[m,i] - table[m,j]|^2       both are codes: symmetric
///
/// q [P] is a query as its parts see it (product_codes::rotate). Codes are transposed once, so that a table is made in
/// whole vectors, 2 K P operations a query. Every entry is one chain along its part. A query that holds NaN has entries
/// that do. Jegou, Douze, Schmid 2011, "Product Quantization for Nearest Neighbor Search", section III.
#pragma once

#include <sluice/codebook/search/product_codes.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

/// What is searched for: the least squared distance, or the greatest inner product.
enum class closeness { distance, product };

template <FloatOrDouble Scalar>
class cost_tables {
public:
  /// To be called again once codes have changed.
  void prepare(const product_codes<Scalar>& codebooks) {
    parts_ = codebooks.parts();
    codes_ = codebooks.codes();
    part_width_ = codebooks.part_width();
    by_number_.resize(parts_ * part_width_, codes_);
    for (index_t m = 0; m < parts_; ++m)
      for (index_t k = 0; k < codes_; ++k)
        for (index_t d = 0; d < part_width_; ++d) by_number_(m * part_width_ + d, k) = codebooks.code(m, k)[d];
  }

  index_t parts() const noexcept { return parts_; }
  index_t codes() const noexcept { return codes_; }
  /// P, of a query as its parts see it.
  index_t width() const noexcept { return parts_ * part_width_; }
  /// Entries of the table of one query.
  index_t size() const noexcept { return parts_ * codes_; }

  /// table [M,K] of a query [P].
  void make(closeness wanted, const Scalar* query, Scalar* table) const {
    wanted == closeness::distance ? distances(query, table) : products(query, table);
  }

  void distances(const Scalar* query, Scalar* table) const {
    each_number(table, [&](index_t p, const Scalar* column, Scalar* costs) {
      const Scalar q = query[p];
      kernel::transform<Scalar>(
          codes_,
          [q](const auto& cost, const auto& number) {
            const auto difference = number - q;
            return cost + difference * difference;
          },
          costs, costs, column);
    });
  }
  void products(const Scalar* query, Scalar* table) const {
    each_number(table, [&](index_t p, const Scalar* column, Scalar* costs) {
      kernel::add_scaled(-query[p], column, costs, codes_);
    });
  }

  /// table [M,K,K] of squared distances between codes of a part.
  void between_codes(Scalar* table) const {
    for (index_t m = 0; m < parts_; ++m)
      for (index_t i = 0; i < codes_; ++i) {
        Scalar* const row = table + (m * codes_ + i) * codes_;
        for (index_t j = 0; j < codes_; ++j) {
          Scalar sum = 0;
          for (index_t p = m * part_width_; p < (m + 1) * part_width_; ++p) {
            const Scalar difference = by_number_(p, i) - by_number_(p, j);
            sum += difference * difference;
          }
          row[j] = sum;
        }
      }
  }

private:
  template <typename F>
  void each_number(Scalar* table, F&& add) const {
    std::fill_n(table, size(), Scalar(0));
    for (index_t p = 0; p < width(); ++p) add(p, by_number_.row(p), table + p / part_width_ * codes_);
  }

  index_t parts_ = 0;
  index_t codes_ = 0;
  index_t part_width_ = 0;
  matrix_buffer<Scalar> by_number_;  ///< [P,K]: number p of its part's codes
};

}  // namespace sluice::inline SLUICE_ISA
