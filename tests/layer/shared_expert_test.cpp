#include <sluice/layer/shared_expert.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/lambda.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "layer_promises.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto shared_case() {
  return moe_layer{top_k_router<Scalar>{6, 4, {.top_k = 2}}, expert_bank<gated_ffn<Scalar>>{4, 6, 5}};
}

template <typename Layer>
matrix<typename Layer::scalar> infer_shared(const Layer& layer, const matrix<typename Layer::scalar>& x,
                                     const routing_context<typename Layer::scalar>& context = {}) {
  matrix<typename Layer::scalar> y(x.rows(), layer.outputs());
  typename Layer::workspace workspace;
  layer.forward(x, y, workspace, context);
  return y;
}

template <typename Expert>
matrix<typename Expert::scalar> run(const Expert& expert, const matrix<typename Expert::scalar>& x) {
  matrix<typename Expert::scalar> y(x.rows(), expert.outputs()), saved(x.rows(), expert.saved_columns());
  expert.forward(x, y, saved);
  return y;
}

}  // namespace

TEMPLATE_TEST_CASE("shared_expert_layer: the sum of the layer and the expert, plain and gated",
                   "[layer][shared_expert]", float, double) {
  using scalar = TestType;
  const matrix<scalar> x = test::random_matrix<scalar>(40, 6, 1);
  shared_expert_layer plain{shared_case<scalar>(), ffn<scalar, gelu>{6, 9}};
  initialize(plain, 2);
  const matrix<scalar> sum = infer_shared(plain.layer(), x) + run(plain.shared(), x);
  CHECK(test::largest_difference(infer_shared(plain, x), sum) <= test::bound<scalar>(1, 8));

  shared_expert_layer weighed{shared_case<scalar>(), ffn<scalar, gelu>{6, 9}, gated};
  initialize(weighed, 2);
  const matrix<scalar> routed = infer_shared(weighed.layer(), x), shared = run(weighed.shared(), x);
  matrix<scalar> expected(40, 6);
  for (index_t t = 0; t < 40; ++t) {
    double z = 0;
    for (index_t d = 0; d < 6; ++d) z += static_cast<double>(x(t, d)) * static_cast<double>(weighed.gate().data()[d]);
    expected.row(t) = routed.row(t) + static_cast<scalar>(1 / (1 + std::exp(-z))) * shared.row(t);
  }
  CHECK(test::largest_difference(infer_shared(weighed, x), expected) <= test::bound<scalar>(6, 8));
  CHECK_FALSE(test::same_bits(infer_shared(weighed, x), infer_shared(plain, x)));
}

TEST_CASE("shared_expert_layer: every promise of a layer, nested, gated, with losses",
          "[layer][shared_expert][conformance]") {
  moe_layer with_loss{top_k_router<double>{6, 4, {.top_k = 2, .weights = weighting::pre}},
                      expert_bank<swiglu<double>>{4, 6, 5}, importance_loss{}};
  test::check_layer_promises(shared_expert_layer{shared_expert_layer{with_loss, ffn<double, gelu>{6, 7, {.bias = true}}},
                                                 swiglu<double>{6, 3}, gated},
                             1);
}

TEST_CASE("shared_expert_layer: names of parameters", "[layer][shared_expert]") {
  shared_expert_layer layer{shared_case<float>(), swiglu<float>{6, 9}, gated};
  std::vector<std::string> names;
  for_each_parameter(layer, [&](const std::string& name, auto&) { names.push_back(name); });
  CHECK(names.front() == "layer.router.gate.weight");
  CHECK(std::vector<std::string>(names.end() - 4, names.end()) ==
        std::vector<std::string>{"shared.gate", "shared.up", "shared.down", "shared_gate"});
  CHECK(std::vector<index_t>(layer.gate().shape().begin(), layer.gate().shape().end()) == std::vector<index_t>{1, 6});
}

TEST_CASE("shared_expert_layer: zero tokens, a plan used again, and after_step", "[layer][shared_expert]") {
  shared_expert_layer layer{shared_case<double>(), swiglu<double>{6, 9}};
  initialize(layer, 1);
  decltype(layer)::tape tape;
  matrix<double> none(0, 6);
  layer.forward(none, none, tape);
  layer.backward(none, none, tape);
  layer.after_step(tape);
  CHECK(tape.layer.statistics.calls == 0);

  const matrix<double> x = test::random_matrix<double>(10, 6, 2);
  matrix<double> y(10, 6), again(10, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  layer.forward_planned(x, again, workspace);
  CHECK(test::same_bits(again, y));
}

TEST_CASE("shared_expert_layer: what does not fit is refused", "[layer][shared_expert]") {
  CHECK_THROWS_WITH((shared_expert_layer{shared_case<float>(), swiglu<float>{6, 9, {.outputs = 5}}}),
                    "sluice: the layer maps 6 -> 6, its shared expert 6 -> 5");
  shared_expert_layer layer{shared_case<float>(), swiglu<float>{6, 9}};
  decltype(layer)::workspace workspace;
  matrix<float> x(3, 6), narrow(3, 5);
  CHECK_THROWS_AS(layer.forward(x, narrow, workspace), std::invalid_argument);
}

TEST_CASE("shared_expert_layer: a shared expert without backward infers", "[layer][shared_expert]") {
  shared_expert_layer layer{shared_case<float>(), make_expert<float>(6, 6, [](auto x, auto y) { y = 2 * x; })};
  initialize(layer, 1);
  const matrix<float> x = test::random_matrix<float>(7, 6, 2);
  CHECK(test::largest_difference(infer_shared(layer, x), matrix<float>(infer_shared(layer.layer(), x) + 2 * x)) <=
        test::bound<float>(1, 16));
}

TEST_CASE("shared_expert_layer: NaN in a token reaches no gradient", "[layer][shared_expert][gradient]") {
  shared_expert_layer layer{shared_case<double>(), gated_ffn<double>{6, 5}, gated};
  initialize(layer, 4);
  matrix<double> x = test::random_matrix<double>(9, 6, 2);
  matrix<double> dy = test::random_matrix<double>(9, 6, 3);
  x(4, 1) = quiet_nan<double>();
  dy.row(4).setConstant(quiet_nan<double>());
  matrix<double> y(9, 6), dx(9, 6);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  for (index_t t = 0; t < 9; ++t) {
    CHECK(any_nan(&y(t, 0), 6) == (t == 4));
    CHECK_FALSE((t != 4 && any_nan(&dx(t, 0), 6)));
  }
  for_each_parameter(layer, [&](const std::string& name, parameter<double>& p) {
    CAPTURE(name);
    CHECK_FALSE(any_nan(p.gradient().data(), static_cast<index_t>(p.gradient().size())));
  });
}
