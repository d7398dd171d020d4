#include <sluice/reference/naive_moe.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/lambda.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include <sluice/expert/gated_ffn.hpp>

#include "../random_plans.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

constexpr double printed = 5.1e-7;  // worked examples are given with six decimals

/// Expert 0: z -> 2 z, expert 1: z -> -z.
auto twice_and_minus() {
  return expert_union{
      expert_bank(1, make_expert<double>(
                         1, 1, [](auto z, auto u) { u = 2 * z; }, [](auto, auto du, auto dz) { dz = 2 * du; })),
      expert_bank(1, make_expert<double>(
                         1, 1, [](auto z, auto u) { u = -z; }, [](auto, auto du, auto dz) { dz = -du; }))};
}

}  // namespace

TEST_CASE("reference: a sparse plan by hand", "[reference]") {
  // Token 0: experts 1 (weight 0.5, input times 3) and 0 (weight 0.25); token 1: nothing; token 2 is invalid.
  sparse_plan<double> plan;
  plan.reset(3, 2);
  plan.add(0, 1, 0.5, 0, 3);
  plan.add(0, 0, 0.25, 1);
  plan.mark_invalid(2);
  plan.finish();
  auto bank = twice_and_minus();
  const matrix<double> x = (matrix<double>(3, 1) << 4, 5, 6).finished();
  const auto r = reference::forward(plan, bank, x);
  CHECK(r.plan.expert == std::vector<index_t>{0, 1});
  CHECK(r.z == (matrix<double>(2, 1) << 4, 12).finished());
  CHECK(r.u == (matrix<double>(2, 1) << 8, -12).finished());
  CHECK(r.y(0, 0) == 0.25 * 8 - 0.5 * 12);
  CHECK(r.y(1, 0) == 0);
  CHECK(is_nan(r.y(2, 0)));
  const matrix<double> dy = (matrix<double>(3, 1) << 10, 20, 0).finished();
  const auto b = reference::backward(r, bank, x, dy);
  CHECK(b.dcombine(0, 0) == 80);
  CHECK(b.dcombine(0, 1) == -120);
  CHECK(b.dx(0, 0) == 2 * 2.5 + 3 * -5);
  CHECK(b.dx(1, 0) == 0);
  CHECK(b.ddispatch(0, 1) == 4 * -5);
}

TEST_CASE("reference: the combine conventions of the catalogue", "[reference]") {
  // Expert outputs (1, 0), (0, 2), (3, 1); weights softmax(1, 2, 0.6) of the best two, raw and renormalised.
  const auto says = [](double a, double b) {
    return expert_bank(
        1, make_expert<double>(1, 2, [a, b](auto, auto u) { u.col(0).setConstant(a), u.col(1).setConstant(b); }));
  };
  const expert_union bank{says(1, 0), says(0, 2), says(3, 1)};
  const matrix<double> x = matrix<double>::Zero(1, 1);
  const double g0 = 0.227863, g1 = 0.619396;
  for (const double sum : {1.0, g0 + g1}) {
    sparse_plan<double> plan;
    plan.reset(1, 3);
    plan.add(0, 1, g1 / sum, 0);
    plan.add(0, 0, g0 / sum, 1);
    plan.finish();
    const auto r = reference::forward(plan, bank, x);
    CHECK(std::abs(r.y(0, 0) - (sum == 1 ? 0.227863 : 0.268941)) <= 2 * printed);
    CHECK(std::abs(r.y(0, 1) - (sum == 1 ? 1.238792 : 1.462117)) <= 4 * printed);
  }
}

TEST_CASE("reference: the Soft MoE example of the catalogue", "[reference]") {
  // X = (1, 2), slot parameters (1, 0): dispatch columns (0.268941, 0.731059), (0.5, 0.5); combine rows (0.731059,
  // 0.268941), (0.880797, 0.119203); slots 1.731059, 1.5; y = 2.127598, 2.870618.
  soft_plan<double> plan;
  plan.reset(2, 2, 1, {});
  plan.dispatch().map() = (matrix<double>(2, 2) << 0.268941, 0.5, 0.731059, 0.5).finished();
  plan.combine().map() = (matrix<double>(2, 2) << 0.731059, 0.268941, 0.880797, 0.119203).finished();
  const auto bank = twice_and_minus();
  const auto r = reference::forward(plan, bank, (matrix<double>(2, 1) << 1, 2).finished());
  CHECK(std::abs(r.z(0, 0) - 1.731059) <= 2 * printed);
  CHECK(std::abs(r.z(1, 0) - 1.5) <= 2 * printed);
  CHECK(std::abs(r.y(0, 0) - 2.127598) <= 8 * printed);
  CHECK(std::abs(r.y(1, 0) - 2.870618) <= 8 * printed);
}

TEST_CASE("reference: slots of a soft plan see their own group only, and no token that is left out", "[reference]") {
  const std::vector<index_t> borders{0, 2, 5};
  auto plan = test::random_soft_plan<double>(5, 2, 2, 3, borders);
  plan.mark_invalid(3);
  const auto dense = reference::write_out(plan);
  CHECK(dense.columns() == 8);
  CHECK(dense.invalid == std::vector<index_t>{3});
  for (index_t t = 0; t < 5; ++t)
    for (index_t g = 0; g < 2; ++g)
      for (index_t s = 0; s < 4; ++s) {
        const index_t column = plan.row(g, s);
        const bool meets = plan.group_of(t) == g && t != 3;
        CHECK(dense.dispatch(t, column) == (meets ? plan.dispatch()(t, s) : 0));
        CHECK(dense.combine(t, column) == (meets ? plan.combine()(t, s) : 0));
        CHECK(dense.expert[static_cast<std::size_t>(column)] == s / 2);
      }
}

TEST_CASE("reference: gradients equal central differences", "[reference][gradient]") {
  const auto check = [](auto plan, auto set_numbers) {
    expert_bank<gated_ffn<double>> bank{plan.experts(), 4, 5};
    initialize(bank, 1);
    matrix<double> x = test::random_matrix<double>(plan.tokens(), 4, 2);
    const matrix<double> dy = test::random_matrix<double>(plan.tokens(), 4, 3);
    const auto b = reference::backward(reference::forward(plan, bank, x), bank, x, dy);
    auto [numbers, gradients] = set_numbers(plan, b);
    std::vector<checked_input> inputs{{"x", test::span_of(x), test::span_of(b.dx)}};
    for (std::size_t i = 0; i < numbers.size(); ++i) inputs.push_back({"plan", numbers[i], gradients[i]});
    const auto report =
        check_gradients(bank, inputs, [&] { return (reference::forward(plan, bank, x).y.array() * dy.array()).sum(); });
    INFO(report.describe());
    CHECK(report.checked > 100);
    // Sums of some tens: rounding of 1e-14 over a step of 1e-6 is 1e-8, relative to entries of at least 1e-2.
    CHECK(report.largest_error < 1e-6);
  };
  std::vector<double> weight, scale;
  check(test::random_sparse_plan<double>(6, 3, 4, true), [&](auto& plan, const auto& b) {
    for (index_t i = 0; i < plan.size(); ++i) {
      weight.push_back(b.dcombine(plan.token(i), i));
      scale.push_back(b.ddispatch(plan.token(i), i));
    }
    return std::pair(std::vector<std::span<double>>{plan.weights(), plan.input_scales()},
                     std::vector<std::span<const double>>{weight, scale});
  });
  matrix<double> combine(6, 6), dispatch(6, 6);
  check(test::random_soft_plan<double>(6, 3, 2, 4), [&](auto& plan, const auto& b) {
    for (index_t t = 0; t < 6; ++t)
      for (index_t s = 0; s < 6; ++s) {
        combine(t, s) = b.dcombine(t, plan.row(0, s));
        dispatch(t, s) = b.ddispatch(t, plan.row(0, s));
      }
    const auto numbers = [](matrix_buffer<double>& m) {
      return std::span<double>(m.data(), static_cast<std::size_t>(m.size()));
    };
    return std::pair(std::vector<std::span<double>>{numbers(plan.combine()), numbers(plan.dispatch())},
                     std::vector<std::span<const double>>{test::span_of(std::as_const(combine)),
                                                          test::span_of(std::as_const(dispatch))});
  });
}
