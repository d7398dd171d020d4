/// How much the output of a layer changes when one expert alone has its weights rounded: what decides who gets how many
/// bits.
///
///   error[e][j] = sum over batches of |Y - Y_ej|_F over the batch,  Y_ej: the layer's output with expert e at j + 1 bits
///
///   expert_sensitivity<swiglu<float>> sensitivity(layer.bank());  // as MC-MoE: 1, 2 and 3 bits, groups of 128
///   for each batch:  sensitivity.add(layer.bank(), x, workspace.plan.routed(), executor);
///   allocate_bits(allocation_costs(calibration.tokens(), calibration.weights(), sensitivity.errors()), budget);
///
/// Norms of batches add up, as published: batches should be equally long. Only the tokens of an expert see it change: the
/// square of a norm is the sum over its rows of (weight (f_e(x) - f_ej(x)))^2. Every weight matrix of the expert is
/// rounded; biases stay. How to round may be said otherwise: round(w, j) gives what w [out, in] becomes for choice j.
/// Rows whose output is not finite count for nothing, an expert without rows has error 0. Sums are in double, in the
/// order of the rows: equal bits for any thread count and the same batches. Throws std::invalid_argument for shapes that
/// are not the bank's, and for weights that have no code. Huang et al. 2024, "MC-MoE: Mixture Compressor for
/// Mixture-of-Experts LLMs Gains More", arXiv:2410.06270.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/quant/round_to_nearest.hpp>
#include <sluice/quant/sign_codes.hpp>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Plain rounding to choice + 1 bits by groups: signs with a mean magnitude, then evenly spaced from least to most.
struct round_by_groups {
  index_t group = 128;

  matrix<float> operator()(const matrix<float>& w, index_t choice) const {
    if (choice == 0) return sign_codes(w, group).to_matrix();
    return round_to_nearest(w, {.bits = static_cast<int>(choice + 1), .group = group, .range = code_range::min_max})
        .to_matrix();
  }
};

template <typename Expert, typename Round = round_by_groups>
class expert_sensitivity {
public:
  using scalar = typename Expert::scalar;

  /// Throws std::invalid_argument unless there is a choice.
  explicit expert_sensitivity(const expert_bank<Expert>& bank, index_t choices = 3, Round round = {})
      : inputs_(bank.inputs()), round_(std::move(round)) {
    if (choices < 1) throw_invalid("sensitivity needs a choice of bits or more, not ", choices);
    errors_ = matrix<double>::Zero(bank.experts(), choices);
  }

  index_t experts() const noexcept { return errors_.rows(); }
  index_t choices() const noexcept { return errors_.cols(); }
  /// [E, choices]
  const matrix<double>& errors() const noexcept { return errors_; }

  /// Takes a batch in. An expert with rows is copied and rounded once a choice.
  void add(const expert_bank<Expert>& bank, tokens_in<scalar> x, const routed_rows<scalar>& rows,
           const executor_ref& executor = {}) {
    if (bank.experts() != experts() || rows.experts() != experts() || x.cols() != inputs_)
      throw_invalid("the sensitivity of ", experts(), " experts of width ", inputs_, " cannot take rows of width ",
                    x.cols(), " for ", rows.experts(), " of ", bank.experts(), " experts");
    std::vector<row_range> active;
    for (const row_range& own : rows.by_expert) {
      for_each_weight_matrix(bank.expert(own.expert),
                             [&](const auto& weight) { detail::check_finite_weights(in_float(weight), executor); });
      active.push_back(own);
    }
    executor.parallel_for(static_cast<index_t>(active.size()), [&](index_t a) {
      add_expert(bank.expert(active[as_size(a)].expert), x, rows, active[as_size(a)]);
    });
  }

private:
  template <typename Model, typename F>
  static void for_each_weight_matrix(Model& expert, F&& f) {
    for_each_parameter(expert, [&](const std::string&, auto& parameter) {
      if (parameter.role() == parameter_role::weight && parameter.shape().size() == 2) f(parameter);
    });
  }
  static matrix<float> in_float(const auto& weight) { return weight.to_matrix().template cast<float>(); }

  void add_expert(const Expert& expert, tokens_in<scalar> x, const routed_rows<scalar>& rows, const row_range& own) {
    matrix<scalar> inputs(own.size(), inputs_), exact(own.size(), expert.outputs()), rounded = exact;
    matrix<scalar> saved(own.size(), expert.saved_columns());
    for (index_t i = 0; i < own.size(); ++i)
      inputs.row(i) = rows.input_scale(own.begin + i) * x.row(rows.token(own.begin + i));
    expert.forward(inputs, exact, saved);
    for (index_t j = 0; j < choices(); ++j) {
      Expert copy = expert;
      for_each_weight_matrix(copy, [&](auto& weight) {
        weight.assign(matrix<scalar>(round_(in_float(weight), j).template cast<scalar>()));
      });
      copy.forward(inputs, rounded, saved);
      double squares = 0;
      for (index_t i = 0; i < own.size(); ++i) {
        const matrix<scalar> change = exact.row(i) - rounded.row(i);
        if (!all_finite(change.data(), change.size())) continue;
        const auto weight = static_cast<double>(rows.weight(own.begin + i));
        squares += weight * weight * change.template cast<double>().squaredNorm();
      }
      errors_(own.expert, j) += std::sqrt(squares);
    }
  }

  index_t inputs_;
  Round round_;
  matrix<double> errors_;
};

}  // namespace sluice::inline SLUICE_ISA
