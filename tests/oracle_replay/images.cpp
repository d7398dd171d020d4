// Layers over images: AdvMoE's convolution, the cluster study's filters on patches.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/images/pooled_filters.hpp>
#include <sluice/gate/piece_sum.hpp>
#include <sluice/layer/images/chosen_channels.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/score_weighted.hpp>
#include <sluice/train/cross_entropy.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- AdvMoE ----------------------------------------------------------------------------------------------------------

/// An image a row: the files have [B,C,H,W].
template <typename Scalar>
matrix<Scalar> images_of(const oracle_case<Scalar>& c, const std::string& tensor) {
  const std::vector<Scalar> numbers = c.numbers(tensor);
  const index_t count = c.axis(tensor, 0);
  return const_matrix_map<Scalar>(numbers.data(), count, static_cast<index_t>(numbers.size()) / count);
}

template <typename Scalar>
void advmoe_conv(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E");
  const image_shape image{c.axis("x", 1), c.axis("x", 2), c.axis("x", 3)};
  chosen_channels_layer<Scalar> layer(
      image, E, c.template setting<index_t>("out_channels"),
      window_shape::square(c.template setting<index_t>("kernel"), c.template setting<index_t>("stride"),
                           c.template setting<index_t>("padding")));
  bindings<Scalar> bound;
  for (index_t e = 0; e < E; ++e)
    bound.bind("weight", layer.bank().expert(e).weight(), e * layer.bank().expert(e).weight().size());
  bound.load(c);
  const matrix<Scalar> x = images_of(c, "x"), dy = images_of(c, "grad_out"), scores = c.rows("scores");
  matrix<Scalar> y(x.rows(), layer.outputs()), dx(x.rows(), x.cols());
  routing_context<Scalar> context;
  context.training = true;
  context.features = scores;
  typename chosen_channels_layer<Scalar>::tape tape;
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  c.check("y", y);
  c.check("grad.x", dx);
  c.check("grad.scores", copy(tape.router.gate.features_gradient()));
  c.check_integers("indices", tape.router.choices.expert.span());
  bound.check_gradients(c, "grad");
}

// ---- cluster study ---------------------------------------------------------------------------------------------------

/// y = softmax(the layer's output), and dy -> the gradient of that output.
template <typename Scalar>
matrix<Scalar> softmax_rows(const matrix<Scalar>& scores) {
  matrix<Scalar> y(scores.rows(), scores.cols());
  for (index_t t = 0; t < y.rows(); ++t) sluice::kernel::softmax(&scores(t, 0), &y(t, 0), y.cols());
  return y;
}
template <typename Scalar>
matrix<Scalar> softmax_rows_backward(const matrix<Scalar>& y, const matrix<Scalar>& dy) {
  const matrix<Scalar> pulled = y.cwiseProduct(dy);
  matrix<Scalar> d = pulled;
  for (index_t t = 0; t < y.rows(); ++t) d.row(t) -= y.row(t) * pulled.row(t).sum();
  return d;
}

template <typename Scalar, typename Phi>
void run_clusters(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E");
  const auto n = c.template setting<index_t>("samples");
  const auto P = c.template setting<index_t>("patches");
  const auto d = c.template setting<index_t>("patch_width");
  const auto m = c.template setting<index_t>("filters_per_class");
  using gate = piece_sum_gate<linear_gate<Scalar>>;
  moe_layer layer{
      score_weighted_router<Scalar, gate, uniform_noise<Scalar>>(gate(linear_gate<Scalar>(d, E), P)),
      expert_bank<pooled_filters<Scalar, Phi>>(E, pooled_filters<Scalar, Phi>(P, d, 2, m)),
      switch_balance{.coefficient = 0, .share = balance_share::first_choice, .probability = loss_probability::none}};
  bindings<Scalar> bound;
  bound.bind("router.weight", layer.router().gate().inner().weight());
  for (index_t e = 0; e < E; ++e) {
    bound.bind("experts.weight", layer.bank().expert(e).weight(), e * layer.bank().expert(e).weight().size());
    bound.bind("experts.bias", layer.bank().expert(e).bias(), e * layer.bank().expert(e).bias().size());
  }
  bound.load(c);
  const std::vector<double> draws = c.file().template read_vector<double>("uniform");
  routing_context<Scalar> context;
  context.training = true;
  context.random.replay(noise_site, draws);
  const std::vector<Scalar> numbers = c.numbers("x");
  const matrix<Scalar> x = const_matrix_map<Scalar>(numbers.data(), n, P * d);
  typename decltype(layer)::tape tape;
  matrix<Scalar> scores(n, 2), dx(n, P * d);
  const auto backward = [&](const matrix<Scalar>& dscores, const std::string& prefix) {
    zero_gradients(layer);
    layer.forward(x, scores, tape, context);
    layer.backward(dscores, dx, tape);
    c.check(prefix + ".x", dx);
    bound.check_gradients(c, prefix);
  };
  layer.forward(x, scores, tape, context);
  const matrix<Scalar> y = softmax_rows(scores);
  c.check("y", y);
  std::vector<index_t> chosen;
  for (index_t t = 0; t < n; ++t) chosen.push_back(tape.plan.expert(tape.plan.of_token(t)[0]));
  c.check_integers("indices", chosen);
  backward(softmax_rows_backward<Scalar>(y, c.rows("grad_out")), "grad");

  matrix<Scalar> dy(n, 2);
  const auto labels = c.integers("labels");
  const auto objective = softmax_cross_entropy<Scalar>{}(y, std::vector<index_t>(labels.begin(), labels.end()), dy);
  c.check("ce_loss", static_cast<Scalar>(objective.loss));
  backward(softmax_rows_backward(y, dy), "grad_ce_loss");

  layer.template loss<0>().coefficient = static_cast<double>(1);
  zero_gradients(layer);
  layer.forward(x, scores, tape, context);
  layer.backward(matrix<Scalar>::Zero(n, 2).eval(), dx, tape);
  c.check("balance_loss", tape.loss());
  c.check("grad_balance_loss.x", dx);
  c.check("grad_balance_loss.router.weight", layer.router().gate().inner().weight().gradient_matrix());
}

template <typename Scalar>
void cluster_moe(oracle_case<Scalar>& c) {
  if (c.template setting<bool>("nonlinear"))
    run_clusters<Scalar, cube>(c);
  else
    run_clusters<Scalar, no_activation>(c);
}

}  // namespace

std::vector<replayer> images() {
  return {{"advmoe_conv", advmoe_conv<float>, advmoe_conv<double>},
          {"cluster_moe", cluster_moe<float>, cluster_moe<double>}};
}

}  // namespace oracle
