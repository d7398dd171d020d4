#include <sluice/attention/self_attention.hpp>
#include <sluice/layer/branches/shortcut.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

constexpr index_t block_width = 8, real_experts = 3, copies = 2;
constexpr double scaling = 1.5;

rms_norm<double> norm() { return rms_norm<double>{block_width, {.epsilon = 1e-6}}; }
template <typename Part>
auto sublayer(Part part) {
  return residual_layer{normalized_layer{std::move(part), norm()}};
}
auto attention() { return self_attention<double>{block_width, {.heads = 2, .rotary = {.width = 4}}}; }
auto dense() { return dense_layer{swiglu<double>{block_width, 6}}; }

/// A whole layer of LongCat-Flash: attention, then a mixture that skips MLP, attention and MLP.
auto longcat_layer() {
  sequence layer{
      sublayer(attention()),
      shortcut_layer{
          moe_layer{sigmoid_router<double>{
                        linear_gate<double>(block_width, real_experts + copies),
                        {.top_k = 2, .renormalize = false, .scaling = scaling, .scores = expert_scores::softmax}},
                    expert_union{expert_bank<swiglu<double>>{real_experts, block_width, 5},
                                 expert_bank<identity_expert<double>>{copies, block_width}}},
          norm(), dense(), sequence{sublayer(attention()), sublayer(dense())}}};
  initialize(layer, 3);
  std::uint64_t seed = 30;
  for_each_parameter(layer, [&](const std::string& name, auto& p) {
    if (name.ends_with("gain")) p.fill([&](index_t i) { return 0.8 + 0.1 * double((i + index_t(seed)) % 5); });
    ++seed;
  });
  auto& router = layer.layer<1>().layer().router();
  router.gate().weight().assign(test::random_matrix<double>(real_experts + copies, block_width, 7));
  for (index_t e = 0; e < real_experts + copies; ++e) router.bias()[as_size(e)] = 0.06 * double(e);
  return layer;
}

template <typename Layer>
matrix<double> block_output_of(const Layer& layer, const matrix<double>& x, const routing_context<double>& context) {
  matrix<double> y(x.rows(), layer.outputs());
  typename Layer::workspace ws;
  layer.forward(x, y, ws, context);
  return y;
}
matrix<double> normalized(rms_norm<double>& by, const matrix<double>& x) {
  matrix<double> y = x;
  for (index_t t = 0; t < x.rows(); ++t)
    y.row(t) = x.row(t).cwiseProduct(by.gain().to_matrix().col(0).transpose()) /
               std::sqrt(x.row(t).squaredNorm() / double(block_width) + 1e-6);
  return y;
}

}  // namespace

TEST_CASE("shortcut block: LongCat-Flash's layer, sublayer by sublayer", "[attention][branches]") {
  auto layer = longcat_layer();
  static_assert(decltype(layer)::causal && decltype(layer)::mixes_tokens);
  const matrix<double> x = test::random_matrix<double>(11, block_width, 1);
  const std::vector<index_t> borders{0, 4, 11};
  const routing_context<double> context{.sequences = borders};
  auto& skipping = layer.layer<1>();
  auto& mixture = skipping.layer();

  matrix<double> h =
      x + block_output_of(layer.layer<0>().layer().layer(), normalized(layer.layer<0>().layer().norm(), x), context);
  const matrix<double> n = normalized(skipping.norm(), h);
  // Scores weigh, scores and bias choose; an expert that is none gives the token as the mixture reads it.
  matrix<double> mixed = matrix<double>::Zero(11, block_width);
  index_t of_copies = 0;
  for (index_t t = 0; t < 11; ++t) {
    Eigen::VectorXd p = (mixture.router().gate().weight().to_matrix() * n.row(t).transpose()).array().exp();
    p /= p.sum();
    Eigen::VectorXd chosen_by = p;
    for (index_t e = 0; e < p.size(); ++e) chosen_by[e] += mixture.router().bias()[as_size(e)];
    for (index_t j = 0; j < 2; ++j) {
      index_t e = 0;
      chosen_by.maxCoeff(&e);
      chosen_by[e] = -1;
      of_copies += e >= real_experts;
      const matrix<double> row = n.row(t);
      matrix<double> out = row;
      if (e < real_experts) {
        const dense_layer alone{mixture.bank().bank<0>().expert(e)};
        out = block_output_of(alone, row, {});
      }
      mixed.row(t) += scaling * p[e] * out;
    }
  }
  CAPTURE(of_copies);
  CHECK((of_copies > 2 && of_copies < 20));
  h += block_output_of(skipping.first(), n, context);
  auto& second = skipping.rest().layer<0>().layer();
  h += block_output_of(second.layer(), normalized(second.norm(), h), context);
  auto& third = skipping.rest().layer<1>().layer();
  h += block_output_of(third.layer(), normalized(third.norm(), h), context);
  CHECK(test::largest_difference(block_output_of(layer, x, context), matrix<double>(h + mixed)) <
        test::bound<double>(80, 8));
}

TEST_CASE("shortcut block: every promise of a layer, gradients among them", "[attention][branches][conformance]") {
  const std::vector<index_t> borders{0, 9, 23};
  layer_check_options<double> options{.seed = 5, .tokens = 23};
  options.context.sequences = borders;
  const auto report = check_layer(longcat_layer(), options);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == outcome::passed);
}
