/// Smaller codebooks of a trained one: k-means of its codes, and which code becomes which.
///
///   nested_codebook<float> nested(vq.codebook().table().map(), {1024, 256, 16}, {.random = random_source{7}});
///   nested.coarsen(ids, 2, smaller);            // from the trained codebook's numbers to those of 256, no vector read
///   vector_quantizer coarse{nested.codes(2)};
///
/// Level 0 is the trained codebook, every further one the means of the codes of the one before it, so numbers of a
/// level can be made of those of any finer one, and a picture coded once is sent at any of the rates. With weights (how
/// often each code was chosen) a mean is one of tokens, not of codes. Begins with k-means++; equal distances: the
/// lowest code. Codes that hold NaN have no_code in every level. Deterministic: equal bits for any thread count.
/// Mao et al. 2024, "Extreme Image Compression using Fine-tuned VQGANs".
#pragma once

#include <sluice/codebook/codes/learned.hpp>
#include <sluice/codebook/kmeans.hpp>

#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct nested_codebook_options {
  random_source random{};
  index_t rounds = 50;
  std::span<const Scalar> weights{};  ///< none, or one a code of the trained codebook, at least 0
};

template <FloatOrDouble Scalar>
class nested_codebook {
public:
  using options = nested_codebook_options<Scalar>;

  /// Throws std::invalid_argument unless sizes fall, from below the number of codes to at least 1, and weights fit.
  nested_codebook(tokens_in<Scalar> codes, const std::vector<index_t>& sizes, const options& o = {},
                  const executor_ref& executor = {}) {
    tables_.emplace_back(codes.rows(), codes.cols());
    tables_.back().map() = codes;
    maps_.emplace_back(codes.rows());
    for (index_t c = 0; c < codes.rows(); ++c)
      maps_.back()[c] = any_nan(tables_.back().row(c), codes.cols()) ? no_code : c;
    buffer<Scalar> weights(codes.rows(), Scalar(1));
    if (!o.weights.empty()) {
      if (static_cast<index_t>(o.weights.size()) != codes.rows())
        throw_invalid("nested_codebook of ", codes.rows(), " codes was given ", o.weights.size(), " weights");
      std::copy(o.weights.begin(), o.weights.end(), weights.begin());
    }
    for (const index_t size : sizes) add_level(size, o, weights, executor);
  }

  index_t levels() const noexcept { return static_cast<index_t>(tables_.size()); }
  index_t size(index_t level) const noexcept { return tables_[as_size(level)].rows(); }
  const_matrix_map<Scalar> table(index_t level) const noexcept { return tables_[as_size(level)].map(); }
  /// The code of this level that every code of the trained codebook becomes.
  std::span<const index_t> map(index_t level) const noexcept { return maps_[as_size(level)].span(); }

  learned_codes<Scalar> codes(index_t level) const {
    learned_codes<Scalar> own(size(level), tables_.front().cols());
    own.table().assign(table(level));
    return own;
  }

  /// Numbers of the trained codebook to those of a level; no_code stays. `smaller` may be `ids`. Throws
  /// std::invalid_argument for another shape, or a number that is no code.
  void coarsen(tokens_in<index_t> ids, index_t level, tokens_out<index_t> smaller) const {
    if (ids.rows() != smaller.rows() || ids.cols() != smaller.cols())
      throw_invalid("numbers [", ids.rows(), ", ", ids.cols(), "] cannot become [", smaller.rows(), ", ",
                    smaller.cols(), "]");
    for (index_t t = 0; t < ids.rows(); ++t)
      for (index_t m = 0; m < ids.cols(); ++m) {
        const index_t id = ids(t, m);
        if (id != no_code && (id < 0 || id >= size(0)))
          throw_invalid("token ", t, " has the code ", id, ", there are ", size(0));
        smaller(t, m) = id == no_code ? no_code : map(level)[as_size(id)];
      }
  }

private:
  /// weights are those of the last level's codes, and become those of the new one's.
  void add_level(index_t codes, const options& o, buffer<Scalar>& weights, const executor_ref& executor) {
    const index_t before = size(levels() - 1), width = tables_.front().cols();
    if (codes < 1 || codes >= before)
      throw_invalid("a codebook of ", before, " codes has none of ", codes, " nested in it");
    kmeans<Scalar> clusters(codes, width, {.rounds = o.rounds});
    clusters.begin(table(levels() - 1), spread_rows{o.random.split(levels())}, executor, std::as_const(weights).span());
    clusters.fit(table(levels() - 1), executor, std::as_const(weights).span());
    clusters.label(table(levels() - 1), executor, std::as_const(weights).span());
    buffer<Scalar> sums(codes, Scalar(0));
    for (index_t c = 0; c < before; ++c)
      if (const index_t id = clusters.ids()[as_size(c)]; id != no_code) sums[id] += weights[c];
    buffer<index_t> map(size(0));
    for (index_t c = 0; c < size(0); ++c) {
      const index_t id = maps_.back()[c];
      map[c] = id == no_code ? no_code : clusters.ids()[as_size(id)];
    }
    tables_.emplace_back(codes, width);
    tables_.back().map() = clusters.table();
    maps_.push_back(std::move(map));
    weights = std::move(sums);
  }

  std::vector<matrix_buffer<Scalar>> tables_;
  std::vector<buffer<index_t>> maps_;
};

}  // namespace sluice::inline SLUICE_ISA
