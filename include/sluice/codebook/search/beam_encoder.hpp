/// Codes that add up, chosen by beam search: M stages, of which each codes what the ones before have left.
///
///   restored[t] = sum over m of stages[m][ids[t,m]]        stages[m] [K_m,D], x [T,D], ids [T,M]
///
/// At every stage each of the beam's partial sums is extended by every code, and the `beam` extensions that leave the
/// least squared rest stay; the best one at the end is the answer. beam = 1 is greedy, what a residual_quantizer does.
/// Equal rests: the earlier partial sum, then the lowest code. A vector that holds NaN gets no_code in every column and
/// is restored as zeros. Stages may be anybody's tables. Vectors go to an executor, equal bits for every one; nothing
/// is allocated once warm. With the squared norms of what is restored, |q - restored|^2 = |q|^2 - 2 sum over m of q .
/// code + norm, so that products in tables are all that a search needs. Chen, Guan, Wang 2010, "Approximate Nearest
/// Neighbor Search by Residual Vector Quantization"; Babenko and Lempitsky 2014.
#pragma once

#include <sluice/codebook/code_search.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/top_k.hpp>

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class beam_encoder {
public:
  using scalar = Scalar;
  using stage = const_matrix_map<Scalar>;
  struct workspace {
    buffer<Scalar> numbers;
    buffer<index_t> choices;
  };

  /// Stages are views: they must live as long as the encoder, and once they change it has to be made again. Throws
  /// std::invalid_argument unless there is a stage, each has a code, all have one width, and beam >= 1.
  beam_encoder(std::vector<stage> stages, index_t beam) : stages_(std::move(stages)), beam_(beam) {
    if (stages_.empty() || beam < 1)
      throw_invalid("codes that add up need a stage and a beam of 1, not ", static_cast<index_t>(stages_.size()),
                    " and ", beam);
    for (const stage& s : stages_) {
      if (s.rows() < 1 || s.cols() != inputs())
        throw_invalid("a stage of codes that add up is [", s.rows(), ", ", s.cols(), "], the first one has codes of ",
                      inputs());
      most_codes_ = std::max<index_t>(most_codes_, s.rows());
      for (index_t k = 0; k < s.rows(); ++k)
        halves_.push_back(kernel::dot(s.data() + k * s.cols(), s.data() + k * s.cols(), s.cols()) / 2);
    }
  }

  index_t inputs() const noexcept { return stages_.front().cols(); }
  index_t columns() const noexcept { return static_cast<index_t>(stages_.size()); }
  index_t codes(index_t column) const noexcept { return stages_[as_size(column)].rows(); }

  /// ids [T,M] of x [T,D]. Throws std::invalid_argument if shapes do not fit.
  void encode(tokens_in<Scalar> x, tokens_out<index_t> ids, workspace& ws, const executor_ref& executor = {}) const {
    check_call(x, ids.rows(), ids.cols());
    const index_t numbers = 2 * beam_ * inputs() + beam_ * most_codes_, choices = beam_ + 2 * beam_ * columns();
    const executor_ref threads = executor.for_work(x.rows() * beam_ * halves_.size() * inputs() / 4);
    const index_t tasks = (std::min)(threads.concurrency(), x.rows());
    ws.numbers.resize(tasks * numbers);
    ws.choices.resize(tasks * choices);
    std::atomic<index_t> next{0};  // a task takes one vector after the other: memory is for as many as run
    threads.parallel_for(tasks, [&](index_t task) {
      for (index_t t = next++; t < x.rows(); t = next++)
        encode_one(x.data() + t * x.outerStride(), ids.data() + t * ids.outerStride(),
                   ws.numbers.data() + task * numbers, ws.choices.data() + task * choices);
    });
  }

  /// x [T,D], restored from ids [T,M]. Throws std::invalid_argument if shapes do not fit or a number is no code.
  void decode(tokens_in<index_t> ids, tokens_out<Scalar> x) const {
    check_call(x, ids.rows(), ids.cols());
    x.setZero();
    for (index_t t = 0; t < ids.rows(); ++t)
      for (index_t m = 0; m < columns(); ++m) {
        const index_t id = ids(t, m);
        if (id == no_code) continue;
        if (id < 0 || id >= codes(m))
          throw_invalid("vector ", t, " has the code ", id, " in column ", m, ", which has ", codes(m));
        kernel::add_scaled(Scalar(1), code(m, id), x.data() + t * x.outerStride(), inputs());
      }
  }

private:
  void check_call(tokens_in<Scalar> x, index_t rows, index_t cols) const {
    if (x.cols() != inputs() || rows != x.rows() || cols != columns())
      throw_invalid("codes that add up are [T, ", columns(), "] for [T, ", inputs(), "]; vectors are [", x.rows(), ", ",
                    x.cols(), "] and ids [", rows, ", ", cols, "]");
  }
  const Scalar* code(index_t m, index_t id) const noexcept { return stages_[as_size(m)].data() + id * inputs(); }

  void encode_one(const Scalar* x, index_t* ids, Scalar* numbers, index_t* choices) const {
    if (any_nan(x, inputs())) {
      std::fill_n(ids, columns(), no_code);
      return;
    }
    const index_t width = inputs();
    Scalar* rests = numbers;  // [beam,D], and the next stage's
    Scalar* next_rests = rests + beam_ * width;
    Scalar* const scores = next_rests + beam_ * width;  // [beam,K]
    index_t* const chosen = choices;
    index_t* paths = chosen + beam_;  // [beam,M], and the next stage's
    index_t* next_paths = paths + beam_ * columns();
    std::copy_n(x, width, rests);
    index_t sums = 1, first = 0;
    for (index_t m = 0; m < columns(); ++m) {
      const index_t count = codes(m);
      kernel::multiply_nt(sums, count, width, rests, width, code(m, 0), width, scores, count);
      for (index_t s = 0; s < sums; ++s) {
        const Scalar half = kernel::dot(rests + s * width, rests + s * width, width) / 2;
        for (index_t k = 0; k < count; ++k) scores[s * count + k] -= halves_[first + k] + half;
      }
      const index_t kept = (std::min)(m + 1 == columns() ? index_t{1} : beam_, sums * count);
      kernel::top_k(scores, sums * count, kept, chosen);
      for (index_t s = 0; s < kept; ++s) {
        const index_t from = chosen[s] / count, id = chosen[s] % count;
        std::copy_n(paths + from * columns(), m, next_paths + s * columns());
        next_paths[s * columns() + m] = id;
        for (index_t d = 0; d < width; ++d) next_rests[s * width + d] = rests[from * width + d] - code(m, id)[d];
      }
      std::swap(rests, next_rests);
      std::swap(paths, next_paths);
      sums = kept;
      first += count;
    }
    std::copy_n(paths, columns(), ids);
  }

  std::vector<stage> stages_;
  index_t beam_;
  index_t most_codes_ = 0;
  buffer<Scalar> halves_;  ///< |code|^2 / 2, stage after stage
};

}  // namespace sluice::inline SLUICE_ISA
