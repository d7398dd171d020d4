// Self-contrast decoding: one layer with its best experts, and with experts of given ranks.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/router/tokens_choose/chosen_ranks.hpp>
#include <sluice/train/self_contrast.hpp>

namespace oracle {
namespace {

using namespace sluice;

/// The logits of one pass; with its gradients if the file has them of this one.
template <typename Scalar>
matrix<Scalar> logits_of_pass(oracle_case<Scalar>& c, const std::string& pass, bool has_gradients) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  const auto ranks = c.template setting<std::vector<index_t>>((pass + "_ranks").c_str());
  moe_layer layer{
      chosen_ranks_router<Scalar>(linear_gate<Scalar>(D, E),
                                  softmax_rule<Scalar>({.top_k = ranks.back() + 1, .constant_weight = true}), ranks),
      expert_bank<swiglu<Scalar>>(E, D, c.template setting<index_t>("H"))};
  bindings<Scalar> bound;
  bound.bind("router.weight", layer.router().gate().weight());
  for (index_t e = 0; e < E; ++e) {
    auto& expert = layer.bank().expert(e);
    bound.bind("experts.w1", expert.gate(), e * expert.gate().size());
    bound.bind("experts.w3", expert.up(), e * expert.up().size());
    bound.bind("experts.w2", expert.down(), e * expert.down().size());
  }
  bound.load(c);
  typename decltype(layer)::tape tape;
  const matrix<Scalar> x = c.rows("x");
  matrix<Scalar> y(x.rows(), D);
  layer.forward(x, y, tape, {});
  c.check(pass + ".y", y);
  std::vector<index_t> ids;
  std::vector<Scalar> weights;
  const auto& table = tape.router.choices;
  for (index_t t = 0; t < x.rows(); ++t)
    for (std::size_t j = 0; j < ranks.size(); ++j) {
      ids.push_back(table.expert[t * table.top_k + index_t(j)]);
      weights.push_back(table.weight[t * table.top_k + index_t(j)]);
    }
  c.check_integers(pass + ".indices", ids);
  c.check(pass + ".weights", std::span<const Scalar>(weights));
  if (has_gradients) check_task(c, layer, tape, bound, routing_context<Scalar>{});
  const matrix<Scalar> logits =
      (x + y) * c.rows("head.weight").transpose() / c.template setting<Scalar>((pass + "_temperature").c_str());
  c.check(pass + ".logits", logits);
  return logits;
}

template <typename Scalar>
void scmoe_contrast(oracle_case<Scalar>& c) {
  const matrix<Scalar> strong = logits_of_pass(c, "strong", true), weak = logits_of_pass(c, "weak", false);
  const auto beta = c.template setting<double>("beta");
  matrix<Scalar> scores = self_contrast{.alpha = c.template setting<double>("alpha"), .beta = beta}(strong, weak);
  std::vector<index_t> valid, token;
  for (index_t t = 0; t < scores.rows(); ++t) {
    token.push_back(kernel::arg_max(&scores(t, 0), scores.cols()));
    for (index_t v = 0; v < scores.cols(); ++v) {
      const bool is_in = order_key(scores(t, v)) != order_key(-std::numeric_limits<Scalar>::infinity());
      valid.push_back(is_in);
      // The file has the scores of all words, ours those of valid ones.
      if (!is_in) scores(t, v) = static_cast<Scalar>((1 + beta) * double(strong(t, v)) - beta * double(weak(t, v)));
    }
  }
  c.check_integers("valid", valid);
  c.check_integers("token", token);
  c.check("contrast", scores);
}

}  // namespace

std::vector<replayer> contrast() { return {{"scmoe_contrast", scmoe_contrast<float>, scmoe_contrast<double>}}; }

}  // namespace oracle
