/// What calibration tokens tell of the experts of a bank: who was chosen, by how much weight, and second moments of
/// what each of an expert's matrices is multiplied with.
///
///   bank_calibration calibration(layer.bank());
///   for each batch:  layer.forward(x, y, workspace);  calibration.add(layer.bank(), x, workspace.plan.routed());
///   const inverse_factor factor = calibration.factor_of_first(e, {.damping = 0.01}, executor);     // gate and up
///
///   tokens[e] += rows of expert e;  weights[e] += their weights;  first[e] += sum of x x^T;  last[e] += sum of h h^T
///
/// The layer is not changed and does not know: rows are those of its plan, h is found by running the first maps again,
/// some rows at a time. Scores from before the weights were normalised may be given in their place, [T,E], as MC-MoE
/// does. Moments take D^2 + H^2 numbers of eight bytes an expert: `only` limits them to some experts, for several
/// passes over the tokens.
///
/// An expert with fewer than `least_rows` rows gets the neutral factor (H = I: its weights are rounded plainly) and is
/// listed in unseen(). Rows that hold NaN or infinity are in no moment. T = 0 adds nothing. Equal bits for any thread
/// count and the same batches. Throws std::invalid_argument for shapes that are not the bank's.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/quant/input_moments.hpp>

#include <limits>
#include <type_traits>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct calibration_options {
  index_t first_expert = 0;                              ///< moments of the experts from here on
  index_t only = (std::numeric_limits<index_t>::max)();  ///< and of no more than so many
  index_t least_rows = 16;
};

namespace detail {

/// h [n,H] = activate(x W_first^T) of n adjacent rows, in whole vectors; the pitch is padded to them.
template <MadeOfLinearMaps Expert>
  requires(Expert::first_maps > 0)
void run_first_maps(const Expert& expert, const matrix_buffer<typename Expert::scalar>& x, index_t rows,
                    matrix_buffer<typename Expert::scalar>& h, const executor_ref& executor) {
  using scalar = typename Expert::scalar;
  constexpr index_t lanes = kernel::simd_width<scalar>;
  constexpr auto maps = as_size(Expert::first_maps);
  const index_t inputs = x.cols(), panels = expert.first_map(0).panels();
  h.resize(rows, panels * lanes);
  executor.parallel_blocks(panels, 4, rows * inputs * lanes / 4, [&](index_t begin, index_t end) {
    buffer<scalar> weights(inputs * lanes), sums(index_t(maps) * rows * lanes);
    for (index_t p = begin; p < end; ++p) {
      for (std::size_t m = 0; m < maps; ++m) {
        visit_map(expert.first_map(static_cast<int>(m)),
                  [&](const auto& map) { map.format().decode(map.panel(p), 0, inputs, weights.data()); });
        kernel::multiply_nn(rows, lanes, inputs, x.data(), x.cols(), weights.data(), lanes,
                            sums.data() + index_t(m) * rows * lanes, lanes);
      }
      for (index_t r = 0; r < rows; ++r) {
        std::array<kernel::simd<scalar>, maps> z;
        for (std::size_t m = 0; m < maps; ++m) z[m] = kernel::load(sums.data() + (index_t(m) * rows + r) * lanes);
        kernel::store<scalar>(h.row(r) + p * lanes, expert.activate(p * lanes, z));
      }
    }
  });
}

}  // namespace detail

template <MadeOfLinearMaps Expert>
class bank_calibration {
public:
  using scalar = typename Expert::scalar;

  explicit bank_calibration(const expert_bank<Expert>& bank, calibration_options o = {})
      : options_(o),
        inputs_(bank.inputs()),
        tokens_(as_size(bank.experts()), 0),
        weights_(as_size(bank.experts()), 0.0) {
    if (o.first_expert < 0 || o.only < 1 || o.first_expert >= bank.experts() || o.least_rows < 1)
      throw_invalid("moments of ", o.only, " experts from ", o.first_expert, " on, with ", o.least_rows,
                    " rows or more, cannot be had of ", bank.experts(), " experts");
    const index_t end = o.first_expert + (std::min)(o.only, bank.experts() - o.first_expert);
    for (index_t e = o.first_expert; e < end; ++e) {
      first_.emplace_back(Expert::first_maps > 0 ? inputs_ : 0);
      last_.emplace_back(bank.expert(e).last_map().inputs());
    }
  }

  index_t experts() const noexcept { return static_cast<index_t>(tokens_.size()); }
  /// Rows and summed weights of the experts, [E].
  const std::vector<double>& tokens() const noexcept { return tokens_; }
  const std::vector<double>& weights() const noexcept { return weights_; }
  bool has_moments_of(index_t e) const noexcept {
    return e >= options_.first_expert && e - options_.first_expert < static_cast<index_t>(last_.size());
  }
  /// Of what the first maps read, and of what the last map does; both the same where there are no first maps.
  const input_moments& first(index_t e) const { return Expert::first_maps > 0 ? first_[place(e)] : last_[place(e)]; }
  const input_moments& last(index_t e) const { return last_[place(e)]; }

  /// The experts, of those with moments, that get the neutral factor for lack of rows.
  std::vector<index_t> unseen() const {
    std::vector<index_t> list;
    for (index_t e = options_.first_expert; has_moments_of(e); ++e)
      if (is_unseen(first(e)) || is_unseen(last(e))) list.push_back(e);
    return list;
  }
  inverse_factor factor_of_first(index_t e, factor_options o = {}, const executor_ref& executor = {}) const {
    return factor_of(first(e), o, executor);
  }
  inverse_factor factor_of_last(index_t e, factor_options o = {}, const executor_ref& executor = {}) const {
    return factor_of(last(e), o, executor);
  }

  /// Takes a batch in. The weight of a row is that of the plan.
  void add(const expert_bank<Expert>& bank, tokens_in<scalar> x, const routed_rows<scalar>& rows,
           const executor_ref& executor = {}) {
    add_weighted(
        bank, x, rows, [&](index_t i, index_t) { return rows.weight(i); }, executor);
  }
  /// The weight of a row is the score [T,E] of its token.
  void add(const expert_bank<Expert>& bank, tokens_in<scalar> x, const routed_rows<scalar>& rows,
           tokens_in<scalar> scores, const executor_ref& executor = {}) {
    if (scores.rows() != x.rows() || scores.cols() != experts())
      throw_invalid("scores [", scores.rows(), ", ", scores.cols(), "] are not those of ", x.rows(), " tokens and ",
                    experts(), " experts");
    add_weighted(
        bank, x, rows, [&](index_t i, index_t e) { return scores(rows.token(i), e); }, executor);
  }

private:
  static constexpr index_t rows_at_once = 256;

  std::size_t place(index_t e) const {
    if (!has_moments_of(e)) throw_invalid("no moments of expert ", e, " were asked for");
    return as_size(e - options_.first_expert);
  }
  bool is_unseen(const input_moments& moments) const { return moments.rows() < options_.least_rows; }
  inverse_factor factor_of(const input_moments& moments, factor_options o, const executor_ref& executor) const {
    return is_unseen(moments) ? inverse_factor(moments.inputs()) : inverse_factor(moments.to_matrix(), o, executor);
  }

  template <typename WeightOf>
  void add_weighted(const expert_bank<Expert>& bank, tokens_in<scalar> x, const routed_rows<scalar>& rows,
                    const WeightOf& weight_of, const executor_ref& executor) {
    if (bank.experts() != experts() || rows.experts() != experts() || x.cols() != inputs_)
      throw_invalid("a calibration of ", experts(), " experts of width ", inputs_, " cannot take rows of width ",
                    x.cols(), " for ", rows.experts(), " of ", bank.experts(), " experts");
    for (const auto& [e, begin, end] : rows.by_expert) {
      tokens_[as_size(e)] += static_cast<double>(end - begin);
      for (index_t i = begin; i < end; ++i) weights_[as_size(e)] += static_cast<double>(weight_of(i, e));
      if (!has_moments_of(e)) continue;
      for (index_t i = begin; i < end; i += rows_at_once)
        add_rows(bank.expert(e), place(e), x, rows, i, (std::min)(end, i + rows_at_once), executor);
    }
  }
  void add_rows(const Expert& expert, std::size_t at, tokens_in<scalar> x, const routed_rows<scalar>& rows,
                index_t begin, index_t end, const executor_ref& executor) {
    const index_t count = end - begin;
    x_.resize(count, inputs_);
    for (index_t i = begin; i < end; ++i)
      kernel::copy_scaled(rows.input_scale(i), x.data() + rows.token(i) * x.outerStride(), x_.row(i - begin), inputs_);
    const auto row_of = [](const matrix_buffer<scalar>& m) { return [&m](index_t r) { return m.row(r); }; };
    if constexpr (Expert::first_maps > 0) {
      first_[at].add_rows(count, row_of(x_), executor);
      detail::run_first_maps(expert, x_, count, h_, executor);
      last_[at].add_rows(count, row_of(h_), executor);
    } else {
      last_[at].add_rows(count, row_of(x_), executor);
    }
  }

  calibration_options options_;
  index_t inputs_;
  std::vector<double> tokens_;
  std::vector<double> weights_;
  std::vector<input_moments> first_;
  std::vector<input_moments> last_;
  matrix_buffer<scalar> x_;
  matrix_buffer<scalar> h_;
};

}  // namespace sluice::inline SLUICE_ISA
