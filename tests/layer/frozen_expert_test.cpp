// A network that is customised at low cost: a frozen expert for everybody, a small one for a user, and a gate between.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/bank_ref.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

using customised_experts = expert_bank<ffn<double>>;

customised_experts global_and_local() {
  return customised_experts({ffn<double>(6, 16, {.outputs = 3}), ffn<double>(6, 2, {.outputs = 3})});
}

}  // namespace

TEST_CASE("a frozen expert beside a small one that learns - with a gate of its own", "[layer][frozen_expert]") {
  moe_layer soft{dense_softmax_router<double>(linear_gate<double>(6, 2, {.bias = true})), global_and_local()};
  initialize(soft, 3);
  ffn<double>& global = soft.bank().expert(0);
  for_each_parameter(global, [](const std::string&, auto& p) { p.set_frozen(true); });
  const matrix<double> x = test::random_matrix<double>(9, 6, 4), dy = test::random_matrix<double>(9, 3, 5);
  matrix<double> y(9, 3), dx(9, 6);
  decltype(soft)::tape tape;
  soft.forward(x, y, tape);
  soft.backward(dy, dx, tape);
  CHECK_FALSE(global.up().has_gradient());
  CHECK_FALSE(global.down().has_gradient());
  CHECK(soft.bank().expert(1).up().gradient_matrix().cwiseAbs().maxCoeff() > 0);
  CHECK(soft.router().gate().weight().gradient_matrix().cwiseAbs().maxCoeff() > 0);

  // Inference decides: one expert a token, chosen first, run alone, with weight 1.
  using chosen = top_k_router<double>;
  moe_layer hard{chosen(soft.router().gate(), {.top_k = 1, .constant_weight = true}), bank_ref(soft.bank())};
  const dense_layer<ffn<double>> everybody(global), user(soft.bank().expert(1));
  matrix<double> decided(9, 3), of_everybody(9, 3), of_user(9, 3);
  decltype(hard)::workspace workspace;
  dense_layer<ffn<double>>::workspace plain;
  hard.forward(x, decided, workspace);
  everybody.forward(x, of_everybody, plain);
  user.forward(x, of_user, plain);
  for (index_t t = 0; t < 9; ++t) {
    const bool is_global = workspace.plan.expert(workspace.plan.of_token(t)[0]) == 0;
    CHECK(test::same_bits(matrix<double>(decided.row(t)), matrix<double>((is_global ? of_everybody : of_user).row(t))));
  }
  // A gate that never asks for the user's expert leaves the global one bit for bit.
  hard.router().gate().weight().fill([](index_t) { return 0.0; });
  hard.router().gate().bias().fill([](index_t e) { return e == 0 ? 1.0 : -1.0; });
  hard.forward(x, decided, workspace);
  CHECK(test::same_bits(decided, of_everybody));
}
