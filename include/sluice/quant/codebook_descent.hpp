/// Codebooks and scales go where the matrix's outputs lose least, indices staying as they are: GPTVQ's last step.
///
///   loss = tr((w - Q) H (w - Q)^T),  dQ = 2 (Q - w) H           w [out,in], H [in,in] second moments of the inputs
///   Adam on everything that decodes into Q; a step that makes the loss larger is taken back, and Adam begins again
///   with a tenth of the rate
///
/// The loss never rises. Codes are those of tunable_codes, or anything that a dense gradient can train
/// (code_tuning.hpp). H of zeros changes nothing. Throws std::invalid_argument if shapes do not fit, a number of H is
/// not finite, or unless steps >= 0 and rate > 0. Equal bits for any thread count. van Baalen et al. 2024, "GPTVQ: The
/// Blessing of Dimensionality for LLM Quantization", arXiv:2402.15319.
#pragma once

#include <sluice/kernel/gemm.hpp>
#include <sluice/quant/code_tuning.hpp>
#include <sluice/quant/tunable_codes.hpp>
#include <sluice/train/adamw.hpp>

#include <algorithm>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct descent_options {
  index_t steps = 25;
  double rate = 1e-3;
};

struct descent_report {
  double before = 0;
  double after = 0;
  index_t taken_back = 0;  ///< steps
};

/// Codes learn; the loss before and after is returned.
template <TunableCodes Codes>
descent_report codebook_descent(Codes& codes, tokens_in<typename Codes::scalar> w, const matrix<double>& h,
                                const descent_options& o = {}, const executor_ref& executor = {}) {
  using scalar = typename Codes::scalar;
  const index_t outputs = codes.outputs(), inputs = codes.inputs();
  if (w.rows() != outputs || w.cols() != inputs || h.rows() != inputs || h.cols() != inputs)
    throw_invalid("codes of a matrix [", outputs, ", ", inputs, "] cannot descend by weights [", w.rows(), ", ",
                  w.cols(), "] and moments [", h.rows(), ", ", h.cols(), "]");
  if (o.steps < 0 || !is_above(o.rate, 0.0))
    throw_invalid("a descent needs steps >= 0 and a rate above 0, not ", o.steps, " and ", o.rate);
  for (index_t i = 0; i < h.size(); ++i)
    if (!is_finite(h.data()[i]))
      throw_invalid("the second moment of inputs ", i / inputs, " and ", i % inputs, " is ", h.data()[i]);
  const matrix<double> wanted = w.template cast<double>();
  matrix<double> error, pushed(outputs, inputs);
  const auto loss = [&] {
    error = codes.to_matrix().template cast<double>() - wanted;
    executor.parallel_blocks(outputs, 32, inputs * inputs / 4, [&](index_t begin, index_t end) {
      kernel::multiply_nn(end - begin, inputs, inputs, error.data() + begin * inputs, inputs, h.data(), inputs,
                          pushed.data() + begin * inputs, inputs);
    });
    double sum = 0;
    for (index_t r = 0; r < outputs; ++r)
      sum += kernel::dot(error.data() + r * inputs, pushed.data() + r * inputs, inputs);
    return sum;
  };
  descent_report report;
  report.before = report.after = loss();
  double rate = o.rate;
  adamw<scalar> optimizer({.learning_rate = rate, .weight_decay = 0, .clear_gradients = true});
  std::vector<scalar> best;  // values of the parameters, which stay who they are
  const auto keep = [&] {
    best.clear();
    detail::for_each_unnamed_parameter(
        codes, [&](const parameter<scalar>& p) { best.insert(best.end(), p.value().begin(), p.value().end()); });
  };
  const auto take_back = [&] {
    const scalar* from = best.data();
    detail::for_each_unnamed_parameter(codes, [&](parameter<scalar>& p) {
      std::copy_n(from, p.value().size(), p.data());
      from += p.value().size();
    });
  };
  keep();
  for (index_t step = 0; step < o.steps && report.after > 0; ++step) {
    codes.backward((2 * pushed).template cast<scalar>());
    optimizer.step(codes, executor);
    if (const double now = loss(); !is_nan(now) && now <= report.after) {
      report.after = now;
      keep();
      continue;
    }
    ++report.taken_back;
    take_back();
    rate /= 10;
    optimizer = adamw<scalar>({.learning_rate = rate, .weight_decay = 0, .clear_gradients = true});
    loss();
  }
  zero_gradients(codes);
  return report;
}

}  // namespace sluice::inline SLUICE_ISA
