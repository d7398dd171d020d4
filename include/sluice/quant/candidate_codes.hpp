/// Vector codes that are still several: every tile is a weighted mean of its nearest codes until one is chosen, VQ4DiT.
///
///   candidates of tile t: the n codes nearest to its weights, nearest first          c [K,m], m weights a tile
///   r[t] = softmax(z[t]),  tile t = sum over j of r[t,j] c[ids[t,j]]       z [tiles,n], first -sharpness |tile - c|^2
///   dc[k] = sum of r[t,j] dtile_t over the (t,j) with id k;   dz = the softmax's of dr[t,j] = dtile_t . c[ids[t,j]]
///   ratio_loss = mean of 1 - |2 r - 1|: 0 where every tile has made up its mind
///
///   candidate_codes<float> codes(w, plain, {.candidates = 2});
///   codes.backward(dw);  codes.ratio_loss(1);  optimizer.step(codes);  zero_gradients(codes);
///   if (codes.ratio_loss() < 0.01) plain = codes.chosen();     // the largest ratio of each, the first of equals
///
/// The paper calibrates by the mean squared difference of a block's outputs on generated inputs; any loss of the
/// decoded weights will do. n = 1 is plain vector quantisation. The plain codes have one stage, one codebook and no
/// scales. Equal distances: the lowest code. Weights that hold NaN are refused. Sums run tile by tile: equal bits for
/// any thread count. Deng et al. 2024, "VQ4DiT: Efficient Post-Training Vector Quantization for Diffusion
/// Transformers", arXiv:2408.17131; how its ratios begin and how the loss of ratios is weighed is left to the options.
#pragma once

#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/kernel/vector_math.hpp>
#include <sluice/quant/tiles.hpp>

#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct candidate_options {
  index_t candidates = 2;  ///< n
  double sharpness = 0;    ///< of the first ratios; 0: all alike
};

template <FloatOrDouble Scalar>
class candidate_codes {
public:
  using scalar = Scalar;

  /// Of weights [out,in] and codes of them. Throws std::invalid_argument unless the codes are of one stage, one
  /// codebook and no scales and of that shape, 1 <= n <= K, sharpness >= 0, and no weight is NaN.
  candidate_codes(tokens_in<Scalar> w, vector_codes codes, candidate_options o = {}, const executor_ref& executor = {})
      : shape_(std::move(codes)) {
    shape_.validate();
    check_shape(w);
    if (shape_.stages() != 1 || shape_.regions() != 1 || shape_.scales.size() != 0)
      throw_invalid("candidates are of codes with one stage, one codebook and no scales, not ", shape_.stages(), ", ",
                    shape_.regions(), " and ", shape_.scales.size());
    const matrix<float>& book = shape_.codebooks[0];
    if (o.candidates < 1 || o.candidates > book.rows() || !is_at_least(o.sharpness, 0.0))
      throw_invalid("tiles have 1 to ", book.rows(), " candidates and a sharpness >= 0, not ", o.candidates, " and ",
                    o.sharpness);
    codebook_ = {{book.rows(), book.cols()}, parameter_role::vector};
    codebook_.map() = book.cast<Scalar>();
    shape_.codebooks.clear();
    choose_candidates(to_tiles<Scalar>(w, tile_shape::of(shape_)), o, executor);
  }

  index_t outputs() const noexcept { return shape_.outputs; }
  index_t inputs() const noexcept { return shape_.inputs; }
  parameter<Scalar>& codebook() noexcept { return codebook_; }
  parameter<Scalar>& logits() noexcept { return logits_; }
  /// [tiles,n]
  const matrix<index_t>& ids() const noexcept { return ids_; }

  /// r [tiles,n].
  matrix<Scalar> ratios() const {
    matrix<Scalar> r(ids_.rows(), ids_.cols());
    for (index_t t = 0; t < r.rows(); ++t)
      kernel::softmax(logits_.data() + t * r.cols(), r.data() + t * r.cols(), r.cols());
    return r;
  }

  matrix<Scalar> to_matrix() const {
    const matrix<Scalar> r = ratios();
    matrix<Scalar> tiles = matrix<Scalar>::Zero(r.rows(), codebook_.cols());
    for (index_t t = 0; t < r.rows(); ++t)
      for (index_t j = 0; j < r.cols(); ++j) tiles.row(t) += r(t, j) * codebook_.map().row(ids_(t, j));
    return from_tiles<Scalar>(tiles, outputs(), inputs(), tile_shape::of(shape_));
  }

  /// Adds the gradients of the codebook and of the ratios' logits. Throws std::invalid_argument for another shape.
  void backward(tokens_in<Scalar> dw) {
    check_shape(dw);
    const matrix<Scalar> dtiles = to_tiles<Scalar>(dw, tile_shape::of(shape_)), r = ratios();
    matrix<Scalar> dr(r.rows(), r.cols());
    matrix_map<Scalar> dc = codebook_.gradient_map();
    for (index_t t = 0; t < r.rows(); ++t)
      for (index_t j = 0; j < r.cols(); ++j) {
        dr(t, j) = dtiles.row(t).dot(codebook_.map().row(ids_(t, j)));
        dc.row(ids_(t, j)) += r(t, j) * dtiles.row(t);
      }
    add_logit_gradient(r, dr);
  }

  /// The loss of ratios that are undecided, in [0, 1]; with a coefficient its gradient is added to that of the logits.
  double ratio_loss(double coefficient = 0) {
    const matrix<Scalar> r = ratios();
    const double count = static_cast<double>((std::max)(r.size(), index_t{1}));
    const auto slope = static_cast<Scalar>(2 * coefficient / count);
    double sum = 0;
    matrix<Scalar> dr(r.rows(), r.cols());
    for (index_t i = 0; i < r.size(); ++i) {
      const Scalar above = 2 * r.data()[i] - 1;
      sum += 1 - (std::abs)(static_cast<double>(above));
      dr.data()[i] = above > 0 ? -slope : above < 0 ? slope : Scalar(0);
    }
    if (coefficient != 0) add_logit_gradient(r, dr);
    return sum / count;
  }

  /// The candidate with the largest ratio of every tile, as plain data, rounded to float.
  vector_codes chosen() const {
    vector_codes codes = shape_;
    codes.codebooks.push_back(codebook_.map().template cast<float>());
    for (index_t t = 0; t < ids_.rows(); ++t) {
      index_t best = 0;
      kernel::top_k(logits_.data() + t * ids_.cols(), ids_.cols(), 1, &best);
      codes.indices[0].data()[t] = static_cast<std::uint16_t>(ids_(t, best));
    }
    return codes;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("codebook", self.codebook_);
    visit("logits", self.logits_);
  }

private:
  void check_shape(tokens_in<Scalar> w) const {
    if (w.rows() != outputs() || w.cols() != inputs())
      throw_invalid("codes of a matrix [", outputs(), ", ", inputs(), "] are none of one [", w.rows(), ", ", w.cols(),
                    "]");
  }

  void choose_candidates(const matrix<Scalar>& tiles, const candidate_options& o, const executor_ref& executor) {
    if (any_nan(tiles.data(), tiles.size())) throw_invalid("weights that hold NaN have no candidates");
    const index_t count = codebook_.rows(), width = codebook_.cols();
    ids_.resize(tiles.rows(), o.candidates);
    logits_ = {{tiles.rows(), o.candidates}, parameter_role::vector};
    Scalar* const logits = logits_.data();
    executor.parallel_blocks(tiles.rows(), 64, count * width / 4, [&](index_t begin, index_t end) {
      matrix<Scalar> nearness(1, count);
      for (index_t t = begin; t < end; ++t) {
        for (index_t k = 0; k < count; ++k)
          nearness(0, k) = -kernel::squared_difference(tiles.data() + t * width, codebook_.data() + k * width, width);
        kernel::top_k(nearness.data(), count, o.candidates, ids_.data() + t * o.candidates);
        for (index_t j = 0; j < o.candidates; ++j)
          logits[t * o.candidates + j] = static_cast<Scalar>(o.sharpness) * nearness(0, ids_(t, j));
      }
    });
  }

  void add_logit_gradient(const matrix<Scalar>& r, const matrix<Scalar>& dr) {
    matrix_map<Scalar> dz = logits_.gradient_map();
    for (index_t t = 0; t < r.rows(); ++t) {
      const Scalar mean = r.row(t).dot(dr.row(t));
      for (index_t j = 0; j < r.cols(); ++j) dz(t, j) += r(t, j) * (dr(t, j) - mean);
    }
  }

  vector_codes shape_;  ///< sizes; its indices are what was nearest once
  parameter<Scalar> codebook_, logits_;
  matrix<index_t> ids_;
};

static_assert(HasParameters<candidate_codes<float>>);

}  // namespace sluice::inline SLUICE_ISA
