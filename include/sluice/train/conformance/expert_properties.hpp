/// What an expert promises, for the conformance kit: rows on their own, nothing written elsewhere, exact gradients that
/// add.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/train/conformance/batch.hpp>
#include <sluice/train/conformance/plan_words.hpp>
#include <sluice/train/conformance/report.hpp>
#include <sluice/train/gradient_check.hpp>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct expert_check_options {
  std::uint64_t seed = 1;
  index_t rows = 41;
  index_t gradient_rows = 5;
  gradient_check_options gradients{.most_entries = 200};
  double gradient_bound = 1e-6;
};

namespace detail {

template <ExpertFunctor Expert>
class expert_probe {
public:
  using scalar = typename Expert::scalar;
  static constexpr bool trains = DifferentiableExpert<Expert>;

  struct results {
    matrix<scalar> y;
    matrix<scalar> dx;
    std::vector<scalar> gradients;
  };

  expert_probe(const Expert& e, const expert_check_options& o)
      : options(o),
        expert(e),
        x(random_rows<scalar>(o.rows, e.inputs(), o.seed)),
        dy(random_rows<scalar>(o.rows, e.outputs(), o.seed + 1)) {
    if (o.rows < 4 || o.gradient_rows < 1 || o.gradient_rows > o.rows)
      throw_invalid("check_expert needs at least 4 rows and 1 <= gradient_rows <= rows, not ", o.rows, " and ",
                    o.gradient_rows);
  }

  /// Forward and backward of these rows, into memory that held this number before. Gradients are added to those that
  /// are there.
  results run(const matrix<scalar>& in, const matrix<scalar>& upstream, scalar held = 0) {
    results r;
    matrix<scalar> saved = matrix<scalar>::Constant(in.rows(), expert.saved_columns(), held);
    r.y.setConstant(in.rows(), expert.outputs(), held);
    std::as_const(expert).forward(in, r.y, saved);
    if constexpr (trains) {
      ensure_gradients(expert);
      r.dx.setConstant(in.rows(), expert.inputs(), held);
      expert.backward(in, upstream, saved, r.dx);
      r.gradients = gradients();
    }
    return r;
  }

  std::vector<scalar> gradients() const {
    return numbers([](const auto& p) { return p.gradient(); });
  }
  std::vector<scalar> values() const {
    return numbers([](const auto& p) { return p.value(); });
  }

  /// Rounding of sums over rows and over an inner width that is not known: taken as what a row may save.
  double bound() const {
    const double terms = static_cast<double>(x.rows() + expert.inputs() + expert.outputs() + expert.saved_columns());
    return 8 * terms * static_cast<double>(std::numeric_limits<scalar>::epsilon());
  }

  expert_check_options options;
  Expert expert;
  matrix<scalar> x;
  matrix<scalar> dy;

private:
  template <typename F>
  std::vector<scalar> numbers(F&& span_of) const {
    std::vector<scalar> all;
    for_each_unnamed_parameter(expert,
                               [&](const auto& p) { all.insert(all.end(), span_of(p).begin(), span_of(p).end()); });
    return all;
  }
};

/// Largest number of a list, at least 1.
template <typename Scalar>
double size_of(const std::vector<Scalar>& numbers) {
  double largest = 1;
  for (const Scalar v : numbers) largest = (std::max)(largest, (std::abs)(static_cast<double>(v)));
  return largest;
}
template <typename Scalar>
double size_of(const matrix<Scalar>& m) {
  return m.size() == 0 ? 1 : (std::max)(1.0, static_cast<double>(m.cwiseAbs().maxCoeff()));
}
template <typename Scalar>
double list_difference(const std::vector<Scalar>& a, const std::vector<Scalar>& b) {
  if (a.size() != b.size()) return (std::numeric_limits<double>::max)();
  return largest_difference(a.data(), b.data(), static_cast<index_t>(a.size()));
}

template <typename Expert>
property_result zero_rows(expert_probe<Expert>& probe) {
  using scalar = typename Expert::scalar;
  const auto r = probe.run(matrix<scalar>(0, probe.x.cols()), matrix<scalar>(0, probe.dy.cols()));
  for (const scalar g : r.gradients)
    if (g != scalar(0)) return fail("a gradient is not zero");
  return pass("no output, zero gradients");
}

/// One call for all rows, and calls for 1, 2, 3, ... rows.
template <typename Expert>
property_result rows_alone(expert_probe<Expert>& probe) {
  using scalar = typename Expert::scalar;
  zero_gradients(probe.expert);
  const auto whole = probe.run(probe.x, probe.dy);
  zero_gradients(probe.expert);
  auto parts = whole;
  for (index_t begin = 0, size = 1; begin < probe.x.rows(); begin += size++) {
    const index_t count = (std::min)(size, probe.x.rows() - begin);
    const matrix<scalar> x = probe.x.middleRows(begin, count);
    const matrix<scalar> dy = probe.dy.middleRows(begin, count);
    const auto part = probe.run(x, dy);
    parts.y.middleRows(begin, count) = part.y;
    if (probe.trains) parts.dx.middleRows(begin, count) = part.dx;
    parts.gradients = part.gradients;  // the sum so far
  }
  const auto y =
      judge("outputs of all rows and of parts", largest_difference(whole.y, parts.y), probe.bound() * size_of(whole.y));
  if (y.result == outcome::failed || !probe.trains) return y;
  const auto dx =
      judge("dx of all rows and of parts", largest_difference(whole.dx, parts.dx), probe.bound() * size_of(whole.dx));
  if (dx.result == outcome::failed) return dx;
  return judge("gradients of all rows and of parts", list_difference(whole.gradients, parts.gradients),
               probe.bound() * size_of(whole.gradients));
}

template <typename Expert>
property_result nan_row(expert_probe<Expert>& probe) {
  using scalar = typename Expert::scalar;
  const auto clean = probe.run(probe.x, probe.dy);
  matrix<scalar> x = probe.x;
  x(1, 0) = quiet_nan<scalar>();
  const auto dirty = probe.run(x, probe.dy);
  for (index_t r = 0; r < x.rows(); ++r) {
    if (r == 1) continue;
    const std::string row = "row " + std::to_string(r);
    if (!equal_bits(&clean.y(r, 0), &dirty.y(r, 0), clean.y.cols())) return fail(row + " changes with it");
    if (probe.trains && !equal_bits(&clean.dx(r, 0), &dirty.dx(r, 0), clean.dx.cols()))
      return fail("dx of " + row + " changes with it");
  }
  return pass("no other row changes by a bit");
}

template <typename Expert>
property_result expert_repetition(expert_probe<Expert>& probe) {
  zero_gradients(probe.expert);
  const auto first = probe.run(probe.x, probe.dy);
  zero_gradients(probe.expert);
  const auto second = probe.run(probe.x, probe.dy);
  const bool equal =
      equal_bits(first.y, second.y) && equal_bits(first.dx, second.dx) && equal_bits(first.gradients, second.gradients);
  return equal ? pass("equal calls give equal bits") : fail("equal calls give other bits");
}

/// y, what is saved for backward, and dx are written, not read: a layer hands over memory that other tokens used.
template <typename Expert>
property_result overwrites(expert_probe<Expert>& probe) {
  using scalar = typename Expert::scalar;
  zero_gradients(probe.expert);
  const auto expected = probe.run(probe.x, probe.dy);
  for (const scalar held : {scalar(12345), quiet_nan<scalar>()}) {
    zero_gradients(probe.expert);
    const auto r = probe.run(probe.x, probe.dy, held);
    const std::string over = " depends on the " + std::to_string(held) + " that was in its memory";
    if (!equal_bits(expected.y, r.y)) return fail("y" + over);
    if (!equal_bits(expected.dx, r.dx)) return fail("dx" + over);
    if (!equal_bits(expected.gradients, r.gradients)) return fail("a gradient" + over);
  }
  return pass("what memory held before reaches nothing");
}

/// Works on the inside of larger matrices, whose rims must stay as they are.
template <typename Expert>
property_result borders(expert_probe<Expert>& probe) {
  using scalar = typename Expert::scalar;
  const index_t n = probe.x.rows();
  const index_t rim = 9;
  const scalar mark = 12345;
  const auto framed = [&](index_t cols) {
    return matrix<scalar>(matrix<scalar>::Constant(n + 2 * rim, cols + 2 * rim, mark));
  };
  const auto inside = [&](matrix<scalar>& m) { return m.block(rim, rim, n, m.cols() - 2 * rim); };
  const auto rim_is_intact = [&](matrix<scalar> m) {
    inside(m).setConstant(mark);
    return (m.array() == mark).all();
  };
  const auto expected = probe.run(probe.x, probe.dy);
  matrix<scalar> x = framed(probe.x.cols());
  matrix<scalar> dy = framed(probe.dy.cols());
  matrix<scalar> y = framed(probe.dy.cols());
  matrix<scalar> dx = framed(probe.x.cols());
  matrix<scalar> saved = framed(probe.expert.saved_columns());
  inside(x) = probe.x;
  inside(dy) = probe.dy;
  std::as_const(probe.expert).forward(inside(x), inside(y), inside(saved));
  if constexpr (expert_probe<Expert>::trains) probe.expert.backward(inside(x), inside(dy), inside(saved), inside(dx));
  if (!rim_is_intact(y) || !rim_is_intact(dx) || !rim_is_intact(saved))
    return fail("it writes outside of its rows or columns");
  const matrix<scalar> got = inside(y);
  return judge("outputs in adjacent and in distant rows", largest_difference(got, expected.y),
               probe.bound() * size_of(expected.y));
}

template <typename Expert>
property_result expert_keeps_parameters(expert_probe<Expert>& probe) {
  const auto before = probe.values();
  probe.run(probe.x, probe.dy);
  return equal_bits(before, probe.values()) ? pass("weights stay as they are") : fail("a call changed a weight");
}

template <typename Expert>
property_result expert_gradients(expert_probe<Expert>& probe) {
  if constexpr (!expert_probe<Expert>::trains) {
    return skip("the expert has no backward");
  } else if constexpr (!std::same_as<typename Expert::scalar, double>) {
    return skip("differences need double; check the expert's double form as well");
  } else {
    matrix<double> x = probe.x.topRows(probe.options.gradient_rows);
    const matrix<double> dy = probe.dy.topRows(probe.options.gradient_rows);
    zero_gradients(probe.expert);
    const auto r = probe.run(x, dy);
    matrix<double> y(x.rows(), dy.cols());
    matrix<double> saved(x.rows(), probe.expert.saved_columns());
    const auto objective = [&] {
      std::as_const(probe.expert).forward(x, y, saved);
      return (y.array() * dy.array()).sum();
    };
    const auto size = static_cast<std::size_t>(x.size());
    const auto report = check_gradients(probe.expert, {{"x", {x.data(), size}, {r.dx.data(), size}}}, objective,
                                        probe.options.gradients);
    return report.largest_error <= probe.options.gradient_bound ? pass(report.describe()) : fail(report.describe());
  }
}

template <typename Expert>
property_result expert_backward_again(expert_probe<Expert>& probe) {
  if constexpr (expert_probe<Expert>::trains) {
    using scalar = typename Expert::scalar;
    matrix<scalar> y(probe.x.rows(), probe.dy.cols());
    matrix<scalar> first(probe.x.rows(), probe.x.cols()), second = first;
    matrix<scalar> saved(probe.x.rows(), probe.expert.saved_columns());
    std::as_const(probe.expert).forward(probe.x, y, saved);
    probe.expert.backward(probe.x, probe.dy, saved, first);
    probe.expert.backward(probe.x, probe.dy, saved, second);
    return equal_bits(first, second) ? pass("a second call gives the same dx")
                                     : fail("dx of a second call is another one: backward has changed what was saved");
  } else {
    return skip("the expert has no backward");
  }
}

template <typename Expert>
property_result expert_gradients_add(expert_probe<Expert>& probe) {
  if constexpr (!expert_probe<Expert>::trains) return skip("the expert has no backward");
  zero_gradients(probe.expert);
  auto once = probe.run(probe.x, probe.dy);
  const auto twice = probe.run(probe.x, probe.dy);
  for (auto& g : once.gradients) g *= 2;
  if (!equal_bits(once.dx, twice.dx)) return fail("dx is added to what was there; it has to be overwritten");
  return judge("twice the gradients and those of two calls", list_difference(once.gradients, twice.gradients),
               probe.bound() * size_of(once.gradients));
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
