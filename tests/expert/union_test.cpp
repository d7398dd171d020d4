#include <sluice/expert/union.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/constant.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/neuron_bank.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/train/initialize.hpp>

#include "../random_plans.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

constexpr index_t union_width = 37, union_tokens = 60;

/// 3 FFNs, 2 constants, copy, zero, 2 neurons: banks that gather rows themselves and banks that do not.
auto unlike_union() {
  expert_union all{expert_bank<swiglu<float>>{3, union_width, 21, {.bias = true}},
                   expert_bank<constant_expert<float>>(2, union_width),
                   expert_union{expert_bank<identity_expert<float>>(1, union_width),
                                expert_bank<zero_expert<float>>(1, union_width)},
                   neuron_bank<float>(2, union_width)};
  initialize(all, 1);
  ensure_gradients(all);
  return all;
}
using unlike_union_type = decltype(unlike_union());
static_assert(RoutedBank<unlike_union_type> && DifferentiableBank<unlike_union_type>);

/// Both passes of a union on the rows of a plan: gathered and added up by the union, or before and after it.
struct union_pass {
  matrix<float> x = test::random_matrix<float>(union_tokens, union_width, 3);
  matrix<float> dy = test::random_matrix<float>(union_tokens, union_width, 4);
  matrix<float> y = matrix<float>::Zero(union_tokens, union_width);
  matrix<float> dx = matrix<float>::Zero(union_tokens, union_width);
  buffer<float> dweight, dinput_scale;
  std::vector<float> gradients;
  unlike_union_type bank = unlike_union();
  unlike_union_type::tape tape;

  void routed(const sparse_plan<float>& plan, executor_ref executor) {
    dweight.resize(plan.size());
    dinput_scale.resize(plan.size());
    std::as_const(bank).forward_routed(x, plan.routed(), y, tape, executor);
    bank.backward_routed(x, plan.routed(), dy, dx, tape, dweight.data(), dinput_scale.data(), executor);
    collect();
  }
  void apart(const sparse_plan<float>& plan) {
    matrix<float> rows(plan.rows(), union_width), outputs = rows, doutputs = rows, drows = rows;
    sparse_plan_gradient<float> dplan;
    dispatch(plan, x, rows, {});
    std::as_const(bank).forward(rows, plan.by_expert(), outputs, tape, {});
    combine(plan, outputs, y, {});
    combine_backward(plan, dy, outputs, doutputs, dplan, {});
    bank.backward(rows, plan.by_expert(), doutputs, drows, tape, {});
    dispatch_backward(plan, x, drows, dx, dplan, {});
    dweight = dplan.weight;
    dinput_scale = dplan.input_scale;
    collect();
  }
  void collect() {
    for_each_parameter(bank, [&](const std::string&, auto& p) {
      gradients.insert(gradients.end(), p.gradient().begin(), p.gradient().end());
    });
  }
};

float largest_apart(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = (std::max)(largest, (std::abs)(a[i] - b[i]));
  return largest;
}

}  // namespace

TEST_CASE("expert_union: gathers rows and adds up outputs with the bits of both passes apart", "[expert][union]") {
  const auto plan = test::random_sparse_plan<float>(union_tokens, 9, 2, true);
  union_pass together, apart;
  together.routed(plan, {});
  apart.apart(plan);
#ifdef __FAST_MATH__  // lets each of the two roads round in an order of its own
  CHECK(test::largest_difference(together.y, apart.y) <= test::bound<float>(9 * union_width, 8));
#else
  CHECK(test::same_bits(together.y, apart.y));
#endif
  // The weights' gradients come from hidden units here and from outputs there. Sums over the width, the experts of a
  // token or all tokens, of products of three numbers below 4.
  const float bound = test::bound<float>(union_tokens + union_width, 64);
  CHECK(test::largest_difference(together.dx, apart.dx) <= bound);
  CHECK(largest_apart(together.dweight.span(), apart.dweight.span()) <= bound);
  CHECK(largest_apart(together.dinput_scale.span(), apart.dinput_scale.span()) <= bound);
  CHECK(largest_apart(together.gradients, apart.gradients) <= bound);
  CHECK(largest_apart(together.gradients, std::vector<float>(apart.gradients.size(), 0)) > 1);
}

TEST_CASE("expert_union: equal bits for every thread count, gathered by it", "[expert][union][determinism]") {
  const auto plan = test::random_sparse_plan<float>(union_tokens, 9, 5, true);
  union_pass serial;
  serial.routed(plan, {});
  for (const int threads : {1, 2, 3, 8}) {
    CAPTURE(threads);
    test::shuffled_threads pool(threads);
    union_pass parallel;
    parallel.routed(plan, pool);
    CHECK(test::same_bits(parallel.y, serial.y));
    CHECK(test::same_bits(parallel.dx, serial.dx));
    CHECK(parallel.dweight == serial.dweight);
    CHECK(parallel.dinput_scale == serial.dinput_scale);
    CHECK(parallel.gradients == serial.gradients);
  }
}
