/// A product of codebooks, for search: a vector is cut into M parts, each of which has the nearest of K codes of its
/// own.
///
///   v = x R^T, or x               [T,P], P = M ceil(D / M): zeros follow where D is less
///   ids[t,m] = arg min over k of |v[t, part m] - table[m,k]|        the lowest of equals
///   restored: the codes side by side, and times R
///
/// R [P,D] has orthonormal columns, so that distances and products are those of x; it learns by
/// codebook/search/learned_rotation.hpp. A vector that holds NaN gets no_code in every column and is restored as zeros.
/// Training M codebooks is codebook/structure/product.hpp's. const calls are thread-safe, each with its own workspace;
/// equal bits for every executor; nothing is allocated once warm. T = 0 is fine. Parameters: "table" [M,K,P/M] and,
/// with rotation, "rotation". Jegou, Douze, Schmid 2011, "Product Quantization for Nearest Neighbor Search"; Ge et al.
/// 2013, "Optimized Product Quantization".
#pragma once

#include <sluice/codebook/metric.hpp>
#include <sluice/codebook/nearest.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/linear.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

struct product_codes_options {
  index_t parts = 8;
  index_t codes = 256;  ///< of every part
  bool rotation = false;
};

template <FloatOrDouble Scalar>
class product_codes {
public:
  using scalar = Scalar;
  struct workspace {
    matrix_buffer<Scalar> rotated;   ///< [T,P]
    matrix_buffer<Scalar> restored;  ///< [T,P]
    code_search<Scalar> search;
    nearest_scratch<Scalar> nearest;
  };

  /// The table is zero and the rotation none until somebody sets them. Throws std::invalid_argument unless 1 <= M, K
  /// and every part holds a number of the vector.
  explicit product_codes(index_t width, product_codes_options o = {}) : width_(width) {
    const index_t part = o.parts < 1 ? 0 : width / o.parts + (width % o.parts != 0);
    if (o.parts < 1 || o.parts > width || o.codes < 1 || width < 1 || (o.parts - 1) * part >= width)
      throw_invalid("a product of codebooks needs at least 1 code and a number for each part, not ", o.codes,
                    " codes and vectors of ", width, " in ", o.parts, " parts of ", part);
    table_ = {{o.parts, o.codes, part}, parameter_role::weight};
    if (!o.rotation) return;
    rotation_ = {{o.parts * part, width}, parameter_role::weight};
    for (index_t d = 0; d < width; ++d) rotation_.data()[d * width + d] = 1;
  }

  index_t inputs() const noexcept { return width_; }
  index_t parts() const noexcept { return table_.rows(); }
  index_t codes() const noexcept { return table_.shape()[1]; }
  index_t part_width() const noexcept { return table_.shape()[2]; }
  /// P: of a vector as its parts see it.
  index_t rotated_width() const noexcept { return parts() * part_width(); }
  bool has_rotation() const noexcept { return rotation_.size() > 0; }

  /// Rows as their parts see them, in the workspace or, where they are the same, x itself.
  const_matrix_map<Scalar> rotate(tokens_in<Scalar> x, workspace& ws, const executor_ref& executor = {}) const {
    if (x.cols() != inputs())
      throw_invalid("codes of vectors of ", inputs(), " cannot take [", x.rows(), ", ", x.cols(), "]");
    if (!has_rotation() && rotated_width() == inputs() && x.outerStride() == x.cols())
      return {x.data(), x.rows(), x.cols()};
    ws.rotated.resize(x.rows(), rotated_width());
    if (has_rotation())
      linear_forward<Scalar>(x, rotation_, ws.rotated.map(), executor);
    else
      for (index_t t = 0; t < x.rows(); ++t)
        std::fill_n(std::copy_n(x.data() + t * x.outerStride(), inputs(), ws.rotated.row(t)),
                    rotated_width() - inputs(), Scalar(0));
    return std::as_const(ws.rotated).map();
  }

  /// ids [T,M] of x [T,D]. Throws std::invalid_argument if shapes do not fit.
  void encode(tokens_in<Scalar> x, tokens_out<index_t> ids, workspace& ws, const executor_ref& executor = {}) const {
    encode_rotated(rotate(x, ws, executor), ids, ws, executor);
  }
  /// For rows that are as their parts see them.
  void encode_rotated(tokens_in<Scalar> rows, tokens_out<index_t> ids, workspace& ws,
                      const executor_ref& executor = {}) const {
    if (rows.cols() != rotated_width() || ids.rows() != rows.rows() || ids.cols() != parts())
      throw_invalid("a product of codebooks encodes [T, ", rotated_width(), "] as [T, ", parts(), "]; vectors are [",
                    rows.rows(), ", ", rows.cols(), "] and ids [", ids.rows(), ", ", ids.cols(), "]");
    for (index_t m = 0; m < parts(); ++m) {
      squared_distance{}.prepare(part(m), ws.search, executor);
      nearest_codes<Scalar>(rows.middleCols(m * part_width(), part_width()), ws.search, ids.middleCols(m, 1), nullptr,
                            ws.nearest, executor);
    }
    for (index_t t = 0; t < ids.rows(); ++t)
      if ((ids.row(t).array() == no_code).any()) ids.row(t).setConstant(no_code);
  }

  /// x [T,D], restored from ids [T,M]. Throws std::invalid_argument if shapes do not fit or a number is no code.
  void decode(tokens_in<index_t> ids, tokens_out<Scalar> x, workspace& ws, const executor_ref& executor = {}) const {
    if (x.rows() != ids.rows() || x.cols() != inputs())
      throw_invalid(ids.rows(), " vectors of ", inputs(), " cannot be restored into [", x.rows(), ", ", x.cols(), "]");
    ws.restored.resize(ids.rows(), rotated_width());
    decode_rotated(ids, ws.restored.map());
    if (has_rotation())
      linear_backward_inputs<Scalar>(rotation_, ws.restored.map(), x, executor, kernel::write::replace);
    else
      x = ws.restored.map().leftCols(inputs());
  }
  /// As their parts see them: rows [T,P].
  void decode_rotated(tokens_in<index_t> ids, tokens_out<Scalar> rows) const {
    if (ids.cols() != parts() || rows.rows() != ids.rows() || rows.cols() != rotated_width())
      throw_invalid("a product of codebooks restores [T, ", rotated_width(), "] from [T, ", parts(), "]; ids are [",
                    ids.rows(), ", ", ids.cols(), "] and vectors [", rows.rows(), ", ", rows.cols(), "]");
    for (index_t t = 0; t < ids.rows(); ++t)
      for (index_t m = 0; m < parts(); ++m) {
        const index_t id = ids(t, m);
        if (id != no_code && (id < 0 || id >= codes()))
          throw_invalid("vector ", t, " has the code ", id, " in column ", m, ", which has ", codes());
        Scalar* const to = rows.data() + t * rows.outerStride() + m * part_width();
        if (id == no_code)
          std::fill_n(to, part_width(), Scalar(0));
        else
          std::copy_n(code(m, id), part_width(), to);
      }
  }

  const Scalar* code(index_t part, index_t id) const noexcept {
    return table_.data() + (part * codes() + id) * part_width();
  }
  const_matrix_map<Scalar> part(index_t m) const noexcept { return {code(m, 0), codes(), part_width()}; }

  parameter<Scalar>& table() noexcept { return table_; }
  const parameter<Scalar>& table() const noexcept { return table_; }
  parameter<Scalar>& rotation() noexcept { return rotation_; }
  const parameter<Scalar>& rotation() const noexcept { return rotation_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("table", self.table_);
    if (self.has_rotation()) visit("rotation", self.rotation_);
  }

private:
  index_t width_;
  parameter<Scalar> table_;
  parameter<Scalar> rotation_;
};

}  // namespace sluice::inline SLUICE_ISA
