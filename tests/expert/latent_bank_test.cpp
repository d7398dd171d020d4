#include <sluice/expert/latent_bank.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "io/messages.hpp"
#include "router/layer_checks.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto latent_layer_of() {
  return moe_layer{top_k_router<Scalar>{6, 4, {.top_k = 2}},
                   latent_bank{expert_bank<ffn<Scalar, squared_relu>>{4, 3, 5}, 6, 6}};
}

}  // namespace

TEST_CASE("latent_bank: experts work on a projection, the router on the tokens", "[expert][latent]") {
  auto layer = latent_layer_of<double>();
  initialize(layer, 3);
  CHECK((layer.inputs() == 6 && layer.outputs() == 6 && layer.bank().bank().inputs() == 3));
  const matrix<double> x = test::random_matrix<double>(9, 6, 5);
  matrix<double> y(9, 6), u(9, 3);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);

  const matrix<double> into = layer.bank().into().to_matrix(), out_of = layer.bank().out_of().to_matrix();
  const matrix<double> z = x * into.transpose();
  for (index_t t = 0; t < 9; ++t) {
    matrix<double> mixed = matrix<double>::Zero(1, 3);
    CHECK(workspace.plan.of_token(t).size() == 2);
    for (const index_t i : workspace.plan.of_token(t)) {
      const auto& expert = layer.bank().expert(workspace.plan.expert(i));
      std::vector<matrix<double>> maps;
      for_each_parameter(expert, [&](const std::string&, const auto& p) { maps.push_back(p.to_matrix()); });
      const matrix<double> h = (z.row(t) * maps.front().transpose()).cwiseMax(0.0);
      mixed += workspace.plan.weight(i) * (h.cwiseProduct(h) * maps.back().transpose());
    }
    const matrix<double> wanted = mixed * out_of.transpose();
    for (index_t d = 0; d < 6; ++d)
      CHECK(std::abs(y(t, d) - wanted(0, d)) <= test::bound<double>(20, 4 * (1 + wanted.cwiseAbs().maxCoeff())));
  }

  std::vector<std::string> names;
  for_each_parameter(layer.bank(), [&](const std::string& name, const auto&) { names.push_back(name); });
  CHECK(names.size() == 4 * 2 + 2);
  CHECK((names[8] == "into" && names[9] == "out_of"));
  auto small = layer.stored_as<bfloat16_storage>();
  CHECK(test::same_bits(small.bank().into().to_matrix(), into));
  CHECK_THROWS_WITH((latent_bank{expert_bank<ffn<double, squared_relu>>{4, 3, 5}, 0, 6}), test::contains("not 0, 6"));
}

TEST_CASE("latent_bank: gradients equal central differences, in one pass and apart", "[expert][latent][gradient]") {
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 1, 1, 0, 1, 1};
  auto context = test::in_training();
  context.token_mask = mask;
  auto layer = latent_layer_of<double>();
  initialize(layer, 11);
  const auto report = test::layer_gradients(layer, test::random_matrix<double>(9, 6, 12), context);
  INFO(report.describe());
  CHECK(report.checked > 100);
  CHECK(report.largest_error < test::gradient_tolerance);

  // Rows that were gathered before: the same numbers and gradients, and only the rows asked for.
  auto& bank = layer.bank();
  zero_gradients(bank);
  const std::vector<index_t> offsets{2, 4, 4, 7, 8};
  const matrix<double> x = test::random_matrix<double>(9, 6, 13), dy = test::random_matrix<double>(9, 6, 14);
  const auto loss_at = [&](const matrix<double>& at) {
    matrix<double> y = matrix<double>::Zero(9, 6);
    typename std::remove_cvref_t<decltype(bank)>::tape tape;
    bank.prepare(tape, 9, true);
    bank.forward(at, offsets, y, tape, {});
    return y.cwiseProduct(dy).sum();
  };
  matrix<double> y = matrix<double>::Constant(9, 6, 7), dx = matrix<double>::Constant(9, 6, 7);
  typename std::remove_cvref_t<decltype(bank)>::tape tape;
  bank.prepare(tape, 9, true);
  bank.forward(x, offsets, y, tape, {});
  bank.backward(x, offsets, dy, dx, tape, {});
  for (const index_t t : {0, 1, 8}) CHECK(((y.row(t).array() == 7).all() && (dx.row(t).array() == 7).all()));
  constexpr double step = 1e-6;
  for (index_t t = 2; t < 8; ++t)
    for (index_t d = 0; d < 6; ++d) {
      matrix<double> more = x, less = x;
      more(t, d) += step, less(t, d) -= step;
      CHECK(std::abs((loss_at(more) - loss_at(less)) / (2 * step) - dx(t, d)) < test::gradient_tolerance);
    }
}

TEST_CASE("latent_bank: equal bits for every thread count, NaN stays in its token", "[expert][latent]") {
  auto layer = latent_layer_of<float>();
  initialize(layer, 21);
  routing_context<float> context;
  context.training = true;
  test::check_equal_bits(layer, 131, context);

  matrix<float> x = test::random_matrix<float>(5, 6, 22), y(5, 6), dx(5, 6);
  matrix<float> dy = test::random_matrix<float>(5, 6, 23);
  x(3, 1) = dy(3, 2) = quiet_nan<float>();
  decltype(layer)::tape tape;
  zero_gradients(layer);
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  for (index_t t = 0; t < 5; ++t) CHECK(is_nan(y(t, 0)) == (t == 3));
  for (auto* const p : {&layer.bank().into(), &layer.bank().out_of()})
    for (const float& g : p->gradient()) CHECK(!is_nan(g));
}
