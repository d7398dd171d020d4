// Rows of a routed bank that go elsewhere than to their tokens: the choices of a token stay apart.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/latent_bank.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/expert/neuron_bank.hpp>
#include <sluice/expert/value_table.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/train/initialize.hpp>

#include "../random_plans.hpp"
#include "../support.hpp"

#include <sluice/train/conformance/plan_words.hpp>

using namespace sluice;

namespace {

constexpr index_t target_tokens = 19, target_experts = 4;

/// The plan's rows, each with a row of y of its own, last one first.
struct apart {
  sparse_plan<double> plan = test::random_sparse_plan<double>(target_tokens, target_experts, 7, true);
  std::vector<index_t> targets;

  apart() {
    for (index_t i = 0; i < plan.size(); ++i) targets.push_back(plan.size() - 1 - i);
  }
  routed_rows<double> rows() const {
    routed_rows<double> view = plan.routed();
    view.targets = targets.data();
    return view;
  }
};

/// What a bank makes of rows that stay apart is what it makes of them together: a sum of outputs, and backward equal
/// gradients of everything if every row gets its token's dy.
template <typename Bank>
void check_targets(Bank bank) {
  initialize(bank, 5);
  const apart own;
  const index_t rows = own.plan.size();
  const auto x = test::random_matrix<double>(target_tokens, bank.inputs(), 1);
  const auto dy = test::random_matrix<double>(target_tokens, bank.outputs(), 2);
  const double near_enough = static_cast<double>(test::bound<double>(40, 100));

  typename Bank::tape tape;
  if constexpr (requires { bank.prepare(tape, rows, true); }) bank.prepare(tape, rows, true);
  matrix<double> together = matrix<double>::Zero(target_tokens, bank.outputs());
  bank.forward_routed(x, own.plan.routed(), together, tape, {});
  matrix<double> dx = matrix<double>::Zero(target_tokens, bank.inputs());
  std::vector<double> dweight(as_size(rows)), dscale(as_size(rows));
  ensure_gradients(bank);
  bank.backward_routed(x, own.plan.routed(), dy, dx, tape, dweight.data(), dscale.data(), {});
  const auto gradients = detail::parameter_gradients(bank);

  matrix<double> alone = matrix<double>::Zero(rows, bank.outputs());
  bank.forward_routed(x, own.rows(), alone, tape, {});
  matrix<double> sum = matrix<double>::Zero(target_tokens, bank.outputs());
  matrix<double> dalone(rows, bank.outputs());
  for (index_t i = 0; i < rows; ++i) {
    sum.row(own.plan.token(i)) += alone.row(rows - 1 - i);
    dalone.row(rows - 1 - i) = dy.row(own.plan.token(i));
  }
  CHECK(test::largest_difference(sum, together) <= near_enough);

  matrix<double> dx_alone = matrix<double>::Zero(target_tokens, bank.inputs());
  std::vector<double> dweight_alone(as_size(rows)), dscale_alone(as_size(rows));
  zero_gradients(bank);
  bank.backward_routed(x, own.rows(), dalone, dx_alone, tape, dweight_alone.data(), dscale_alone.data(), {});
  CHECK(test::same_bits(dx, dx_alone));
  CHECK(dweight == dweight_alone);
  CHECK(dscale == dscale_alone);
  const auto gradients_alone = detail::parameter_gradients(bank);
  double difference = 0;  // a map behind the experts adds up their rows, or their tokens' sums
  for (std::size_t i = 0; i < gradients.size(); ++i)
    difference = (std::max)(difference, std::abs(gradients[i] - gradients_alone[i]));
  CHECK(difference <= near_enough);
}

}  // namespace

TEST_CASE("routed rows: every choice of a token may have a row of its own", "[expert][targets]") {
  check_targets(expert_bank<swiglu<double>>{target_experts, 6, 9});
  check_targets(expert_bank<linear_expert<double>>{target_experts, index_t(6), index_t(5)});
  check_targets(neuron_bank<double, silu>{target_experts, 6, {.outputs = 5}});
  check_targets(latent_bank{expert_bank<swiglu<double>>{target_experts, 3, 7}, 6, 5});
}

TEST_CASE("routed rows: without weights every row counts once", "[expert][targets]") {
  expert_bank<linear_expert<double>> bank{target_experts, index_t(6), index_t(5)};
  initialize(bank, 5);
  const apart own;
  const auto x = test::random_matrix<double>(target_tokens, 6, 1);
  routed_rows<double> view = own.rows();
  view.weights = nullptr;
  matrix<double> y = matrix<double>::Zero(own.plan.size(), 5);
  typename decltype(bank)::tape tape;
  bank.prepare(tape, own.plan.size(), false);
  bank.forward_routed(x, view, y, tape, {});
  for (index_t i = 0; i < own.plan.size(); ++i) {
    matrix<double> weighted = own.plan.weight(i) * y.row(own.plan.size() - 1 - i);
    matrix<double> by_plan = matrix<double>::Zero(own.plan.size(), 5);
    bank.forward_routed(x, own.rows(), by_plan, tape, {});
    CHECK(test::largest_difference(weighted, matrix<double>(by_plan.row(own.plan.size() - 1 - i))) <=
          test::bound<double>(6, 40));
  }
}

TEST_CASE("dispatch: rows are added where they go and weighed by what comes back from there", "[kernel][targets]") {
  const apart own;
  const auto rows = test::random_matrix<double>(own.plan.size(), 5, 3);
  matrix<double> y = matrix<double>::Zero(own.plan.size(), 5), back(own.plan.size(), 5);
  add_rows<double>(own.rows(), rows, y, {});
  std::vector<double> dweight(as_size(own.plan.size()));
  weigh_rows<double>(own.rows(), y, rows, back, dweight.data(), {});
  for (index_t i = 0; i < own.plan.size(); ++i) {
    CHECK(test::largest_difference(matrix<double>(y.row(own.plan.size() - 1 - i)),
                                   matrix<double>(own.plan.weight(i) * rows.row(i))) == 0);
    CHECK(std::abs(dweight[as_size(i)] - own.plan.weight(i) * rows.row(i).squaredNorm()) <= test::bound<double>(5, 60));
  }
}
