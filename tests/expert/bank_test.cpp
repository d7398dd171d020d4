#include <sluice/expert/bank.hpp>
#include <sluice/expert/union.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/lambda.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/train/initialize.hpp>

#include "../random_plans.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

/// Forward and backward of a bank on rows that are grouped by expert.
template <typename Bank>
struct bank_run {
  using scalar = typename Bank::scalar;
  matrix<scalar> x, dy, y, dx;
  typename Bank::tape tape;

  bank_run(Bank& bank, const std::vector<index_t>& offsets, executor_ref executor = {})
      : x(test::random_matrix<scalar>(offsets.back(), bank.inputs(), 1)),
        dy(test::random_matrix<scalar>(offsets.back(), bank.outputs(), 2)),
        y(offsets.back(), bank.outputs()),
        dx(offsets.back(), bank.inputs()) {
    ensure_gradients(bank);
    zero_gradients(bank);
    std::as_const(bank).forward(x, offsets, y, tape, executor);
    bank.backward(x, offsets, dy, dx, tape, executor);
  }
};

/// The same by calling each expert alone with all of its rows.
template <typename Expert>
void check_against_single_calls(expert_bank<Expert>& bank, const std::vector<index_t>& offsets) {
  using scalar = typename Expert::scalar;
  const bank_run run(bank, offsets);
  for (index_t e = 0; e < bank.experts(); ++e) {
    const index_t begin = offsets[static_cast<std::size_t>(e)];
    const index_t n = offsets[static_cast<std::size_t>(e) + 1] - begin;
    Expert expert = bank.expert(e);
    zero_gradients(expert);
    const matrix<scalar> x = run.x.middleRows(begin, n), dy = run.dy.middleRows(begin, n);
    matrix<scalar> y(n, bank.outputs()), dx(n, bank.inputs()), saved(n, expert.saved_columns());
    expert.forward(x, y, saved);
    expert.backward(x, dy, saved, dx);
    CAPTURE(e, n);
    CHECK(test::same_bits(y, run.y.middleRows(begin, n)));
    CHECK(test::same_bits(dx, run.dx.middleRows(begin, n)));
    std::vector<scalar> alone, in_bank;
    for_each_parameter(expert, [&](const std::string&, auto& p) {
      alone.insert(alone.end(), p.gradient().begin(), p.gradient().end());
    });
    for_each_parameter(bank.expert(e), [&](const std::string&, auto& p) {
      in_bank.insert(in_bank.end(), p.gradient().begin(), p.gradient().end());
    });
    CHECK(alone == in_bank);
    if (n == 0) CHECK(std::all_of(in_bank.begin(), in_bank.end(), [](scalar g) { return g == 0; }));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("expert_bank: equals every expert called alone, bit for bit", "[expert][bank]", float, double) {
  const auto offsets = GENERATE(std::vector<index_t>{0, 0, 0, 0}, std::vector<index_t>{0, 1, 1, 2},
                                std::vector<index_t>{0, 70, 75, 175}, std::vector<index_t>{0, 0, 200, 200});
  expert_bank<ffn<TestType, gelu>> plain(3, 6, 9, {.bias = true});
  initialize(plain, 1);
  check_against_single_calls(plain, offsets);
  expert_bank<gated_ffn<TestType>> gated{3, 6, 9};
  initialize(gated, 2);
  check_against_single_calls(gated, offsets);
}

TEST_CASE("expert_bank: experts of unequal hidden width", "[expert][bank]") {
  std::vector<swiglu<double>> experts;
  for (const index_t hidden : {3, 16, 1}) experts.emplace_back(6, hidden);
  expert_bank<swiglu<double>> bank(std::move(experts));
  initialize(bank, 3);
  CHECK(bank.expert(1).hidden() == 16);
  check_against_single_calls(bank, {0, 40, 47, 90});
}

TEMPLATE_TEST_CASE("expert_bank: equal bits for every thread count, with one busy expert",
                   "[expert][bank][determinism]", float, double) {
  expert_bank<gated_ffn<TestType>> bank(4, 10, 20, {.bias = true});
  initialize(bank, 1);
  const std::vector<index_t> offsets{0, 3, 203, 203, 250};
  const auto gradients = [&] {
    std::vector<TestType> all;
    for_each_parameter(
        bank, [&](const std::string&, auto& p) { all.insert(all.end(), p.gradient().begin(), p.gradient().end()); });
    return all;
  };
  const bank_run serial(bank, offsets);
  const auto expected = gradients();
  for (const int threads : {1, 2, 3, 8}) {
    test::shuffled_threads pool(threads);
    const bank_run parallel(bank, offsets, pool);
    CHECK(test::same_bits(parallel.y, serial.y));
    CHECK(test::same_bits(parallel.dx, serial.dx));
    CHECK(gradients() == expected);
  }
}

TEST_CASE("expert_bank: offsets may begin anywhere, as in a union", "[expert][bank]") {
  expert_bank<ffn<double>> bank{2, 4, 5};
  initialize(bank, 1);
  const matrix<double> x = test::random_matrix<double>(30, 4, 2);
  matrix<double> y = matrix<double>::Constant(30, 4, 7), expected(20, 4);
  expert_bank<ffn<double>>::tape tape, other;
  bank.forward(x, std::vector<index_t>{6, 13, 26}, y, tape, {});
  bank.forward(x.middleRows(6, 20), std::vector<index_t>{0, 7, 20}, expected, other, {});
  CHECK((y.topRows(6).array() == 7).all());
  CHECK((y.bottomRows(4).array() == 7).all());
  CHECK(test::same_bits(y.middleRows(6, 20), expected));
}

TEST_CASE("expert_bank: routed rows are added to what y holds, all experts at once or in parts", "[expert][bank]") {
  expert_bank<swiglu<float>> bank{5, 6, 9, {.bias = true}};
  initialize(bank, 1);
  const auto plan = test::random_sparse_plan<float>(40, 5, 2, true);
  const matrix<float> x = test::random_matrix<float>(40, 6, 3), before = test::random_matrix<float>(40, 6, 4);
  matrix<float> y = before, in_parts = before, zero = matrix<float>::Zero(40, 6);
  expert_bank<swiglu<float>>::tape tape;
  bank.forward_routed(x, plan.routed(), y, tape, {});
  bank.forward_routed(x, plan.routed(), zero, tape, {});
  for (const auto& [first, count] : {std::pair<index_t, index_t>{0, 2}, {2, 0}, {2, 1}, {3, 2}})
    bank.forward_routed(x, plan.routed().only(first, count), in_parts, tape, {});
  CHECK(test::same_bits(in_parts, y));
  CHECK(test::largest_difference(y, matrix<float>(before + zero)) <= test::bound<float>(6, 8));
  CHECK(!zero.isZero(0));
  for (index_t t = 0; t < 40; ++t)
    if (plan.of_token(t).empty()) CHECK(test::same_bits(y.row(t), before.row(t)));
}

TEST_CASE("expert_bank: what does not fit is refused", "[expert][bank]") {
  CHECK_THROWS_WITH((expert_bank<ffn<float>>{0, 4, 5}), "sluice: expert_bank needs E >= 1, not 0");
  CHECK_THROWS_WITH(expert_bank<ffn<float>>(std::vector<ffn<float>>{}),
                    "sluice: expert_bank needs at least one expert");
  CHECK_THROWS_WITH(expert_bank<ffn<float>>(std::vector<ffn<float>>{{4, 5}, {4, 5, {.outputs = 3}}}),
                    "sluice: experts of one bank need equal widths: 4 -> 4 and 4 -> 3");
}

TEST_CASE("expert_bank: deduced from an expert, and from a lambda", "[expert][bank]") {
  const expert_bank copies(3, ffn<float>(4, 5));
  static_assert(std::same_as<decltype(copies), const expert_bank<ffn<float>>>);
  CHECK(copies.experts() == 3);
  const expert_bank lambdas(2, make_expert<float>(4, 2, [](auto x, auto y) { y = x.leftCols(2); }));
  CHECK(lambdas.outputs() == 2);
  static_assert(ExpertBank<decltype(lambdas)>);
}

TEMPLATE_TEST_CASE("expert_union: equals its banks called one by one, bit for bit", "[expert][union]", float, double) {
  expert_bank<ffn<TestType>> ffns{2, 6, 9};
  expert_bank<identity_expert<TestType>> copy(1, index_t(6));
  expert_bank<zero_expert<TestType>> zero(1, index_t(6));
  expert_bank<gated_ffn<TestType>> gated{1, 6, 4};
  initialize(ffns, 1);
  initialize(gated, 2);
  expert_union all{ffns, copy, zero, gated};
  CHECK(all.experts() == 5);
  const std::vector<index_t> offsets{0, 40, 45, 52, 60, 100};
  const bank_run run(all, offsets);

  const auto compare = [&](auto& bank, std::size_t first) {
    const auto count = static_cast<std::size_t>(bank.experts());
    const index_t begin = offsets[first], n = offsets[first + count] - begin;
    std::vector<index_t> own(offsets.begin() + static_cast<std::ptrdiff_t>(first),
                             offsets.begin() + static_cast<std::ptrdiff_t>(first + count) + 1);
    for (index_t& o : own) o -= begin;
    const matrix<TestType> x = run.x.middleRows(begin, n), dy = run.dy.middleRows(begin, n);
    matrix<TestType> y(n, 6), dx(n, 6);
    typename std::remove_reference_t<decltype(bank)>::tape tape;
    ensure_gradients(bank);
    bank.forward(x, own, y, tape, {});
    bank.backward(x, own, dy, dx, tape, {});
    CHECK(test::same_bits(y, run.y.middleRows(begin, n)));
    CHECK(test::same_bits(dx, run.dx.middleRows(begin, n)));
  };
  compare(ffns, 0);
  compare(copy, 2);
  compare(zero, 3);
  compare(gated, 4);
  const auto same_gradients = [](auto& a, auto& b) {
    std::vector<TestType> left, right;
    for_each_parameter(
        a, [&](const std::string&, auto& p) { left.insert(left.end(), p.gradient().begin(), p.gradient().end()); });
    for_each_parameter(
        b, [&](const std::string&, auto& p) { right.insert(right.end(), p.gradient().begin(), p.gradient().end()); });
    CHECK(left == right);
  };
  same_gradients(all.template bank<0>(), ffns);
  same_gradients(all.template bank<3>(), gated);
}

TEST_CASE("expert_union: names of parameters, and widths that do not fit", "[expert][union]") {
  expert_union all{expert_bank<ffn<float>>{2, 6, 9}, expert_bank<identity_expert<float>>(1, index_t(6)),
                   expert_bank<swiglu<float>>{1, 6, 4}};
  std::vector<std::string> names;
  for_each_parameter(all, [&](const std::string& name, auto&) { names.push_back(name); });
  CHECK(names ==
        std::vector<std::string>{"0.0.up", "0.0.down", "0.1.up", "0.1.down", "2.0.gate", "2.0.up", "2.0.down"});
  CHECK_THROWS_WITH(
      (expert_union{expert_bank<ffn<float>>{2, 6, 9}, expert_bank<identity_expert<float>>(1, index_t(5))}),
      "sluice: banks of one expert_union need equal widths: 6 -> 6 and 5 -> 5");
}
