/// Codes that learn to rank as the vectors do that they stand for: scores of queries with items, and a loss between
/// scores.
///
///   scores[q,i] = q . item / temperature, or -|q - item|^2 / temperature   queries [Q,P], items [N,P]
///   loss = - mean over q of sum over i of softmax(teacher[q])[i] log(softmax(student[q])[i] + epsilon)
///
/// Distill-VQ: the teacher scores are those of the vectors, the student's those of what is restored from codes, or of
/// the centers of the items' lists; losses of both add up. With codes that take their gradient from all of a part's
/// codes:
///
///   const vector_quantizer part{learned_codes<float>{K, P / M}, index_propagation{.by_distance = true},
///                               commitment_loss{.encoder = 0, .codebook = 0}};
///   product_quantizer codes{std::vector(M, part)};
///   score(queries, vectors, teacher);   codes.forward(vectors, restored, tape);   score(queries, restored, student);
///   const double loss = score_distillation{}(teacher, student, dstudent);
///   score.backward(queries, restored, dstudent, dqueries, drestored);   codes.backward(drestored, dvectors, tape);
///
/// With inverted lists codes are of vector - center, and the center is added to what is restored. Against labels
/// instead of a teacher the loss is softmax_cross_entropy (train/cross_entropy.hpp). Scores of equal rows are equal;
/// NaN in a score makes the loss NaN. Without queries or items the loss is 0. Xiao et al. 2022, "Distill-VQ: Learning
/// Retrieval Oriented Vector Quantization by Distilling Knowledge from Dense Embeddings", equations 3 to 6; epsilon and
/// temperature as in its program.
#pragma once

#include <sluice/codebook/search/cost_tables.hpp>
#include <sluice/kernel/softmax.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

struct closeness_scores {
  closeness wanted = closeness::product;
  double temperature = 1;

  /// scores [Q,N] is overwritten. Throws std::invalid_argument if shapes do not fit, or unless temperature > 0.
  template <FloatOrDouble Scalar>
  void operator()(const matrix<Scalar>& queries, tokens_in<Scalar> items, tokens_out<Scalar> scores) const {
    check_call<Scalar>(queries, items, scores.rows(), scores.cols());
    const auto scale = static_cast<Scalar>(1 / temperature);
    for (index_t q = 0; q < queries.rows(); ++q)
      for (index_t i = 0; i < items.rows(); ++i) {
        const Scalar* const item = items.data() + i * items.outerStride();
        const Scalar* const query = queries.data() + q * queries.cols();
        scores(q, i) = wanted == closeness::product ? scale * kernel::dot(query, item, items.cols())
                                                    : -scale * kernel::squared_difference(query, item, items.cols());
      }
  }

  /// Adds to dqueries [Q,P] and ditems [N,P].
  template <FloatOrDouble Scalar>
  void backward(const matrix<Scalar>& queries, tokens_in<Scalar> items, tokens_in<Scalar> dscores,
                tokens_out<Scalar> dqueries, tokens_out<Scalar> ditems) const {
    check_call<Scalar>(queries, items, dscores.rows(), dscores.cols());
    if (dqueries.rows() != queries.rows() || dqueries.cols() != queries.cols() || ditems.rows() != items.rows() ||
        ditems.cols() != items.cols())
      throw_invalid("gradients of queries and items have other shapes than they have");
    const bool product = wanted == closeness::product;
    const auto scale = static_cast<Scalar>((product ? 1 : 2) / temperature);
    const index_t width = items.cols();
    for (index_t q = 0; q < queries.rows(); ++q)
      for (index_t i = 0; i < items.rows(); ++i) {
        const Scalar weight = scale * dscores(q, i);
        const Scalar* const item = items.data() + i * items.outerStride();
        const Scalar* const query = queries.data() + q * width;
        Scalar* const dquery = dqueries.data() + q * dqueries.outerStride();
        Scalar* const ditem = ditems.data() + i * ditems.outerStride();
        kernel::add_scaled(weight, item, dquery, width);
        kernel::add_scaled(weight, query, ditem, width);
        if (product) continue;
        kernel::add_scaled(-weight, query, dquery, width);
        kernel::add_scaled(-weight, item, ditem, width);
      }
  }

private:
  template <typename Scalar>
  void check_call(tokens_in<Scalar> queries, tokens_in<Scalar> items, index_t rows, index_t cols) const {
    if (queries.cols() != items.cols() || rows != queries.rows() || cols != items.rows())
      throw_invalid("scores of queries [Q,P] with items [N,P] are [Q,N]; these are [", queries.rows(), ", ",
                    queries.cols(), "], [", items.rows(), ", ", items.cols(), "] and [", rows, ", ", cols, "]");
    if (!is_above(temperature, 0.0)) throw_invalid("a temperature is above 0, not ", temperature);
  }
};

struct score_distillation {
  double epsilon = 1e-6;

  /// The loss; dstudent [Q,N] is overwritten with its gradient. Throws std::invalid_argument if shapes do not fit.
  template <FloatOrDouble Scalar>
  double operator()(const matrix<Scalar>& teacher, tokens_in<Scalar> student, tokens_out<Scalar> dstudent) const {
    const index_t rows = teacher.rows(), items = teacher.cols();
    if (student.rows() != rows || student.cols() != items || dstudent.rows() != rows || dstudent.cols() != items)
      throw_invalid("scores to be imitated are [", rows, ", ", items, "], the others [", student.rows(), ", ",
                    student.cols(), "] and their gradient [", dstudent.rows(), ", ", dstudent.cols(), "]");
    if (items == 0) return 0;
    buffer<Scalar> wanted(items), share(items);
    double loss = 0;
    for (index_t q = 0; q < rows; ++q) {
      kernel::softmax(teacher.data() + q * items, wanted.data(), items);
      kernel::softmax(student.data() + q * student.outerStride(), share.data(), items);
      Scalar mean = 0;
      for (index_t i = 0; i < items; ++i) {
        const Scalar guarded = share[i] + static_cast<Scalar>(epsilon);
        loss -= static_cast<double>(wanted[i]) * std::log(static_cast<double>(guarded));
        dstudent(q, i) = -wanted[i] / guarded;
        mean += share[i] * dstudent(q, i);
      }
      for (index_t i = 0; i < items; ++i)
        dstudent(q, i) = share[i] * (dstudent(q, i) - mean) / static_cast<Scalar>(rows);
    }
    return rows == 0 ? 0 : loss / static_cast<double>(rows);
  }
};

}  // namespace sluice::inline SLUICE_ISA
