/// Distils several teachers into one student, token by token, with weights of teachers and tokens: MoVE-KD's loss.
///
///   d[m,v] = mean over the numbers of (s[v] - t_m[v])^2          s, t_m [T,D]; V tokens v an image, B images
///   L      = coefficient * mean over images of sum over m of omega_m (mean over v of d[m,v] + sum of a[v] d[m,v])
///   omega_0 = first_weight;  omega_m = (1 - first_weight) u_m,  u = softmax over m >= 1 of mean over v of <c, t_m[v]>
///
///   const distill_teachers<float> distil{.first_weight = 0.8};
///   loss += distil(student, teachers, {.images = borders, .class_tokens = classes}, dstudent, dteachers);
///
/// The first teacher is what the student was before; c [B,D] are its class tokens, a [T] its attention from the class
/// token, a softmax over the image. Where the mean of u over the images is above flattened_above for some m, u becomes
/// softmax(u); the 0.2 that is added there as released changes nothing. Without class tokens the other teachers are
/// alike, without token weights a is 0. Gradients of s and of the teachers, which may have passed maps that learn, are
/// added, those by way of omega too. With one teacher and first_weight 1 it is plain distillation. Sums are in double;
/// NaN anywhere makes the loss NaN. Cao et al. 2025 (MoVE-KD), arXiv:2501.01709; released code.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// What a distillation is told besides tokens.
template <FloatOrDouble Scalar>
struct distillation_batch {
  std::span<const index_t> images{};        ///< B+1 borders from 0 to T; empty: one image
  std::span<const Scalar> token_weights{};  ///< [T] a, or none
  optional_matrix<Scalar> class_tokens{};   ///< [B,D] c, or none
};

template <FloatOrDouble Scalar>
struct distill_teachers {
  double first_weight = 0.8;
  double flattened_above = 0.8;
  double coefficient = 1;

  /// Returns L; adds into dstudent [T,D] and, unless it is empty, into dteachers, one [T,D] a teacher. Throws
  /// std::invalid_argument if shapes do not fit, an image has no tokens, or first_weight is not in [0, 1].
  Scalar operator()(tokens_in<Scalar> student, std::span<const matrix<Scalar>> teachers,
                    const distillation_batch<Scalar>& batch, tokens_out<Scalar> dstudent,
                    std::span<matrix<Scalar>> dteachers = {}) const {
    validate(student, teachers, batch, dstudent, dteachers);
    const index_t images = batch.images.empty() ? 1 : static_cast<index_t>(batch.images.size()) - 1;
    const index_t others = static_cast<index_t>(teachers.size()) - 1;
    const auto image = [&](index_t b) {
      return batch.images.empty() ? token_range{0, student.rows()}
                                  : token_range{batch.images[as_size(b)], batch.images[as_size(b + 1)]};
    };
    const auto c = [&](index_t b, index_t d) { return static_cast<double>(batch.class_tokens.map()(b, d)); };

    // u [B, M-1], and what it was before it was flattened.
    std::vector<double> u(as_size(images * others), 1.0 / static_cast<double>((std::max<index_t>)(1, others)));
    if (batch.class_tokens)
      for (index_t b = 0; b < images; ++b) {
        for (index_t m = 0; m < others; ++m) {
          double score = 0;
          for (index_t v = image(b).begin; v < image(b).end; ++v)
            for (index_t d = 0; d < student.cols(); ++d)
              score += c(b, d) * static_cast<double>(teachers[as_size(m + 1)](v, d));
          u[as_size(b * others + m)] = score / static_cast<double>(image(b).size());
        }
        softmax(&u[as_size(b * others)], others);
      }
    const std::vector<double> sharp = u;
    const bool is_flattened = batch.class_tokens && is_one_sided(u, images, others);
    if (is_flattened)
      for (index_t b = 0; b < images; ++b) softmax(&u[as_size(b * others)], others);

    double loss = 0;
    for (index_t b = 0; b < images; ++b) {
      const double share = coefficient / static_cast<double>(images), length = static_cast<double>(image(b).size());
      std::vector<double> slope(as_size(others), 0.0);  // of u
      for (index_t m = 0; m <= others; ++m) {
        const double omega = m == 0 ? first_weight : (1 - first_weight) * u[as_size(b * others + m - 1)];
        const matrix<Scalar>& teacher = teachers[as_size(m)];
        double distance = 0;
        for (index_t v = image(b).begin; v < image(b).end; ++v) {
          const double a = batch.token_weights.empty() ? 0 : static_cast<double>(batch.token_weights[as_size(v)]);
          const double of_number = (1 / length + a) / static_cast<double>(student.cols());
          for (index_t d = 0; d < student.cols(); ++d) {
            const double apart = static_cast<double>(student(v, d)) - static_cast<double>(teacher(v, d));
            distance += of_number * apart * apart;
            const auto gradient = static_cast<Scalar>(2 * share * omega * of_number * apart);
            dstudent(v, d) += gradient;
            if (!dteachers.empty()) dteachers[as_size(m)](v, d) -= gradient;
          }
        }
        loss += share * omega * distance;
        if (m > 0) slope[as_size(m - 1)] = share * (1 - first_weight) * distance;
      }
      if (dteachers.empty() || !batch.class_tokens) continue;
      if (is_flattened) softmax_backward(&u[as_size(b * others)], slope);
      softmax_backward(&sharp[as_size(b * others)], slope);
      for (index_t m = 0; m < others; ++m)
        for (index_t v = image(b).begin; v < image(b).end; ++v)
          for (index_t d = 0; d < student.cols(); ++d)
            dteachers[as_size(m + 1)](v, d) += static_cast<Scalar>(slope[as_size(m)] / length * c(b, d));
    }
    return static_cast<Scalar>(loss);
  }

private:
  static void softmax(double* row, index_t count) {
    if (count == 0) return;
    const double largest = *std::max_element(row, row + count);
    double sum = 0;
    for (index_t i = 0; i < count; ++i) sum += row[i] = std::exp(row[i] - largest);
    for (index_t i = 0; i < count; ++i) row[i] /= sum;
  }
  static void softmax_backward(const double* p, std::vector<double>& slope) {
    double inner = 0;
    for (std::size_t i = 0; i < slope.size(); ++i) inner += p[i] * slope[i];
    for (std::size_t i = 0; i < slope.size(); ++i) slope[i] = p[i] * (slope[i] - inner);
  }

  bool is_one_sided(const std::vector<double>& u, index_t images, index_t others) const {
    for (index_t m = 0; m < others; ++m) {
      double mean = 0;
      for (index_t b = 0; b < images; ++b) mean += u[as_size(b * others + m)] / static_cast<double>(images);
      if (mean > flattened_above) return true;
    }
    return false;
  }

  void validate(tokens_in<Scalar> student, std::span<const matrix<Scalar>> teachers,
                const distillation_batch<Scalar>& batch, tokens_in<Scalar> dstudent,
                std::span<const matrix<Scalar>> dteachers) const {
    const auto check_like_student = [&](const char* name, index_t rows, index_t cols) {
      if (rows != student.rows() || cols != student.cols())
        throw_invalid("distill_teachers: ", name, " is [", rows, ", ", cols, "], the student's tokens [",
                      student.rows(), ", ", student.cols(), "]");
    };
    if (teachers.empty() || !is_between(first_weight, 0, 1))
      throw_invalid("distill_teachers needs a teacher and a first weight in [0, 1], not ", teachers.size(), " and ",
                    first_weight);
    if (!is_finite(coefficient) || is_nan(flattened_above))
      throw_invalid("distill_teachers needs a finite coefficient and a number above which to flatten, not ",
                    coefficient, " and ", flattened_above);
    if (!dteachers.empty() && dteachers.size() != teachers.size())
      throw_invalid("distill_teachers has ", dteachers.size(), " gradients for ", teachers.size(), " teachers");
    check_like_student("the student's gradient", dstudent.rows(), dstudent.cols());
    for (const auto& t : teachers) check_like_student("a teacher", t.rows(), t.cols());
    for (const auto& t : dteachers) check_like_student("a teacher's gradient", t.rows(), t.cols());
    if (!batch.token_weights.empty())
      check_like_student("a weight a token", static_cast<index_t>(batch.token_weights.size()), student.cols());
    const index_t images = batch.images.empty() ? 1 : static_cast<index_t>(batch.images.size()) - 1;
    if (batch.class_tokens && (batch.class_tokens.rows != images || batch.class_tokens.cols != student.cols()))
      throw_invalid("distill_teachers needs a class token an image, [", images, ", ", student.cols(), "], not [",
                    batch.class_tokens.rows, ", ", batch.class_tokens.cols, "]");
    bool fits = batch.images.empty() ? student.rows() > 0
                                     : batch.images.front() == 0 && batch.images.back() == student.rows() && images > 0;
    for (std::size_t b = 1; b < batch.images.size(); ++b) fits = fits && batch.images[b - 1] < batch.images[b];
    if (!fits)
      throw_invalid("distill_teachers needs images of a token at least, that are all ", student.rows(), " tokens");
  }
};

}  // namespace sluice::inline SLUICE_ISA
