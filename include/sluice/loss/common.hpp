/// What auxiliary losses share: groups and padding, mean probabilities, the squared coefficient of variation.
///
/// A loss is a plain struct with options and two functions:
///
///   loss(signals, plan, context, gradients)                            coefficient × mean over groups
///   loss.group_value(signals, plan, context, group, scale, gradients)  scale × value of one group
///
/// Both return a number and add its gradient. A loss with coefficient 0 is not evaluated: it returns 0 and reads
/// nothing; one that is not finite throws std::invalid_argument. Padding tokens are in no sum and no mean; a group of
/// nothing but padding has value 0 and is left out of the mean over groups. A layer shows losses tokens that hold NaN as
/// padding. In a loss called directly, NaN in a logit that it reads makes its value NaN (but -ffast-math may hide it
/// here, where nothing is chosen by it).
///
///   P[e] = mean over t of p[t,e],  p[t] = softmax(L[t])       dL[t,j] += p[t,j] (c[j] - sum over e of c[e] p[t,e])
///          or s / sum of s, s = sigmoid(L[t])                 the same times 1 - s[j];   c = derivative by p[t]
///          or softmax over the near rivals of the largest L[t]  (kernel/near_rivals.hpp), the others' p being 0
///          or L[t] itself                                    dL[t,j] += c[j]
///
/// Sums over tokens and experts are made in double, in one order for every executor.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/kernel/near_rivals.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/kernel/softmax.hpp>

#include <algorithm>
#include <limits>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Which of the router's logits a loss reads.
enum class loss_logits {
  clean,  ///< the gate's
  noisy,  ///< those that selection used; the same where nothing was added
};

/// How a loss turns a row of logits into probabilities.
enum class loss_probability { softmax, normalized_sigmoid, near_rivals, none };

/// Whether a variance over E numbers divides by E, or by E - 1 (then 1e-10 is added to the squared mean below it).
enum class variance { population, unbiased };

namespace detail {

template <std::floating_point Scalar>
const matrix_buffer<Scalar>& logits_of(const score_signals<Scalar>& seen, loss_logits which) {
  return which == loss_logits::noisy ? seen.noisy() : seen.clean;
}
template <std::floating_point Scalar>
matrix_buffer<Scalar>& logits_of(score_gradients<Scalar>& gradients, loss_logits which) {
  return which == loss_logits::noisy ? gradients.noisy_or_clean() : gradients.clean;
}

/// Tokens of a group that count.
template <std::floating_point Scalar>
index_t count_tokens(const routing_context<Scalar>& context, token_range group) {
  index_t padding = 0;
  if (!context.token_mask.empty())
    for (index_t t = group.begin; t < group.end; ++t) padding += context.is_padding(t);
  return group.size() - padding;
}

/// f(token) for every token of a group that counts, spread over the executor: f writes to places of that token only,
/// some numbers for each expert.
template <std::floating_point Scalar, typename F>
void for_tokens(const routing_context<Scalar>& context, token_range group, index_t experts, F&& f) {
  context.executor.parallel_each(group.size(), 16 * experts, [&](index_t i) {
    if (!context.is_padding(group.begin + i)) f(group.begin + i);
  });
}

/// sums[e] += rows[t - begin, e] over the tokens of the group that count, in order.
template <std::floating_point Scalar>
void add_rows(const routing_context<Scalar>& context, token_range group, const matrix_buffer<Scalar>& rows,
              index_t count, double* sums) {
  for (index_t t = group.begin; t < group.end; ++t) {
    if (context.is_padding(t)) continue;
    const Scalar* row = rows.row(t - group.begin);
    for (index_t e = 0; e < count; ++e) sums[e] += static_cast<double>(row[e]);
  }
}

/// Throws std::invalid_argument unless the coefficient of a loss is finite.
inline void check_coefficient(double coefficient) {
  if (!is_finite(coefficient)) throw_invalid("an auxiliary loss needs a finite coefficient, not ", coefficient);
}

/// Throws std::invalid_argument unless there is no cost, or a finite one an expert.
inline void check_costs(const char* loss, const std::vector<double>& cost, index_t experts) {
  if (!cost.empty() && static_cast<index_t>(cost.size()) != experts)
    throw_invalid(loss, " has ", cost.size(), " costs for ", experts, " experts");
  for (std::size_t e = 0; e < cost.size(); ++e)
    if (!is_finite(cost[e])) throw_invalid(loss, " has a cost of ", cost[e], " for expert ", e);
}

/// What operator() of every loss does: the sum of group_value(group, coefficient / groups) over groups with tokens.
template <std::floating_point Scalar, typename F>
Scalar mean_over_groups(double coefficient, const routing_context<Scalar>& context, index_t tokens, F&& group_value) {
  check_coefficient(coefficient);
  Scalar sum = 0;
  if (coefficient == 0) return sum;
  index_t groups = 0;
  for (index_t g = 0; g < context.group_count(); ++g) groups += count_tokens(context, context.group(g, tokens)) > 0;
  if (groups == 0) return sum;
  for (index_t g = 0; g < context.group_count(); ++g) sum += group_value(g, coefficient / static_cast<double>(groups));
  return sum;
}

template <typename Loss, std::floating_point Scalar, typename Plan>
Scalar mean_over_groups(const Loss& loss, const score_signals<Scalar>& seen, const Plan& plan,
                        const routing_context<Scalar>& context, score_gradients<Scalar>& gradients) {
  return mean_over_groups(loss.coefficient, context, seen.clean.rows(), [&](index_t group, double scale) {
    return loss.group_value(seen, plan, context, group, scale, gradients);
  });
}

/// Columns of a matrix [T,E]; all of them if there is no count.
struct column_range {
  index_t first = 0;
  index_t count = 0;
};

/// The probabilities of one group, one row a token: those of logits that are divided by a temperature. With columns, of
/// these experts alone.
template <FloatOrDouble Scalar>
class group_probabilities {
public:
  group_probabilities(const matrix_buffer<Scalar>& logits, const routing_context<Scalar>& context, token_range group,
                      loss_probability form, matrix_buffer<Scalar>& rows, double jitter = 0, double temperature = 1,
                      column_range columns = {})
      : logits_(logits),
        columns_(columns.count == 0 ? column_range{0, logits.cols()} : columns),
        context_(context),
        group_(group),
        form_(form),
        jitter_(jitter),
        temperature_(temperature),
        rows_(rows) {
    rows_.resize(group.size(), experts());
    for_tokens(context, group, experts(), [&](index_t t) {
      fill(logits_.row(t) + columns_.first, rows_.row(t - group_.begin));
    });
  }

  index_t experts() const noexcept { return columns_.count; }

  void add_to(double* sums) const { add_rows(context_, group_, rows_, experts(), sums); }

  /// dlogits += the gradient for c[e], the derivative by every p[t,e] of the group.
  void backward(const double* c, matrix_buffer<Scalar>& dlogits) const {
    for_tokens(context_, group_, experts(), [&](index_t t) {
      const Scalar* p = rows_.row(t - group_.begin);
      if (form_ == loss_probability::none) {
        for (index_t e = 0; e < experts(); ++e) dlogits(t, e) += static_cast<Scalar>(c[e] / temperature_);
        return;
      }
      double inner = 0;
      for (index_t e = 0; e < experts(); ++e) inner += c[e] * static_cast<double>(p[e]);
      for (index_t e = 0; e < experts(); ++e) {
        const index_t column = columns_.first + e;
        const double logit = static_cast<double>(logits_(t, column)) / temperature_;
        const double slope =
            (form_ == loss_probability::normalized_sigmoid ? kernel::logistic(-logit) : 1) / temperature_;
        dlogits(t, column) += static_cast<Scalar>(static_cast<double>(p[e]) * (c[e] - inner) * slope);
      }
    });
  }

private:
  void fill(const Scalar* logits, Scalar* row) const {
    if (temperature_ != 1) {
      for (index_t e = 0; e < experts(); ++e) row[e] = logits[e] / static_cast<Scalar>(temperature_);
      logits = row;
    }
    if (form_ == loss_probability::softmax) return kernel::softmax(logits, row, experts());
    if (form_ == loss_probability::none) {
      std::copy_n(logits, experts(), row);
      return;
    }
    if (form_ == loss_probability::near_rivals) {
      const Scalar largest = logits[kernel::arg_max(logits, experts())];
      for (index_t e = 0; e < experts(); ++e)
        row[e] = kernel::is_near_rival(logits[e], largest, static_cast<Scalar>(jitter_))
                     ? logits[e]
                     : -std::numeric_limits<Scalar>::infinity();
      return kernel::softmax(row, row, experts());
    }
    const auto sigmoid = [&](index_t e) { return kernel::logistic(static_cast<double>(logits[e])); };
    double sum = 0;
    for (index_t e = 0; e < experts(); ++e) sum += sigmoid(e);
    for (index_t e = 0; e < experts(); ++e) row[e] = static_cast<Scalar>(sum == 0 ? 0 : sigmoid(e) / sum);
  }

  const matrix_buffer<Scalar>& logits_;
  column_range columns_;
  const routing_context<Scalar>& context_;
  token_range group_;
  loss_probability form_;
  double jitter_;
  double temperature_;
  matrix_buffer<Scalar>& rows_;
};

/// Var(v) / mean(v)^2 of E numbers >= 0 and its derivative by each. 0 where it has no meaning: all numbers zero, E = 1.
inline double cv_squared(const double* v, index_t count, variance form, double* derivative) {
  double mean = 0;
  for (index_t e = 0; e < count; ++e) mean += v[e];
  mean /= static_cast<double>(count);
  for (index_t e = 0; e < count; ++e) derivative[e] = 0;
  if (count == 1 || mean == 0) return 0;
  double squares = 0;
  for (index_t e = 0; e < count; ++e) squares += (v[e] - mean) * (v[e] - mean);
  const double divisor = static_cast<double>(form == variance::population ? count : count - 1);
  const double square = mean * mean + (form == variance::population ? 0 : 1e-10);
  const double value = squares / divisor / square;
  for (index_t e = 0; e < count; ++e)
    derivative[e] = 2 * (v[e] - mean) / (divisor * square) - 2 * value * mean / (static_cast<double>(count) * square);
  return value;
}

/// cv_squared of v[e] times what e costs, and scale × its derivative by each v[e]; v is multiplied in place. Without
/// costs each is 1. Throws std::invalid_argument if there are costs for another number of experts.
inline double cv_squared_of_costs(const std::vector<double>& cost, double* v, index_t count, variance form,
                                  double* derivative, double scale) {
  check_costs("a loss", cost, count);
  const auto cost_of = [&](index_t e) { return cost.empty() ? 1.0 : cost[static_cast<std::size_t>(e)]; };
  for (index_t e = 0; e < count; ++e) v[e] *= cost_of(e);
  const double value = cv_squared(v, count, form, derivative);
  for (index_t e = 0; e < count; ++e) derivative[e] *= scale * cost_of(e);
  return value;
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
