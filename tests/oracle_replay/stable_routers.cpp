// StableMoE: both stages, three distilled routers, both losses.
#include "layer_run.hpp"
#include "replays.hpp"
#include "sublayers.hpp"

#include <sluice/expert/change.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/loss/stable.hpp>
#include <sluice/router/over_training/stable.hpp>

namespace oracle {
namespace {

using namespace sluice;

/// The files count tokens position by position, sequences in turns; routers that look back want sequences one after the
/// other. Row t of ours is row from[t] of the file.
template <typename Scalar>
struct token_order {
  std::vector<index_t> from;

  matrix<Scalar> read(const matrix<Scalar>& rows) const {
    matrix<Scalar> ours(rows.rows(), rows.cols());
    for (index_t t = 0; t < rows.rows(); ++t) ours.row(t) = rows.row(from[static_cast<std::size_t>(t)]);
    return ours;
  }
  matrix<Scalar> written(const matrix<Scalar>& rows) const {
    matrix<Scalar> theirs(rows.rows(), rows.cols());
    for (index_t t = 0; t < rows.rows(); ++t) theirs.row(from[static_cast<std::size_t>(t)]) = rows.row(t);
    return theirs;
  }
  template <typename T>
  std::vector<T> written(const std::vector<T>& numbers) const {
    std::vector<T> theirs(numbers.size());
    for (std::size_t t = 0; t < numbers.size(); ++t) theirs[static_cast<std::size_t>(from[t])] = numbers[t];
    return theirs;
  }
};

template <typename Scalar, typename Router>
void bind_centroids(bindings<Scalar>& b, Router& router) {
  b.bind("router.centroids", router.gate().weight());
}
template <typename Scalar, typename Router>
void bind_distilled(bindings<Scalar>& b, Router& router) {
  b.bind("router.distilled_centroids", router.distilled().centroids());
  b.bind("router.embedding", router.distilled().embeddings());
  if (router.distilled().kernel().size() > 0) b.bind("router.kernel", router.distilled().kernel());
}

/// One loss alone: its value, and the gradients that the file lists under its name.
template <typename Scalar, typename Router, typename Loss>
void check_stable_loss(oracle_case<Scalar>& c, const std::string& name, const Router& router, Loss loss,
                       const routing_context<Scalar>& context, const token_order<Scalar>& order) {
  if (!c.has("expected." + name)) return;
  moe_layer layer{router, expert_bank<identity_expert<Scalar>>(router.experts(), router.inputs()), loss};
  bindings<Scalar> bound, distilled;
  bind_centroids(bound, layer.router());
  bind_distilled(distilled, layer.router());
  const matrix<Scalar> x = order.read(c.rows("x"));
  matrix<Scalar> y(x.rows(), x.cols()), dx(x.rows(), x.cols());
  typename decltype(layer)::tape tape;
  layer.forward(x, y, tape, context);
  zero_gradients(layer);
  layer.backward(matrix<Scalar>::Zero(x.rows(), x.cols()), dx, tape);
  c.check(name, tape.loss());
  c.check("grad_" + name + ".x", order.written(dx));
  bound.check_gradients(c, "grad_" + name);
  distilled.check_gradients(c, "grad_" + name);
}

template <typename Scalar, id_window Window>
void run_stable(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto T = c.template setting<index_t>("T"), length = c.template setting<index_t>("len"), B = c.template setting<index_t>("B");
  token_order<Scalar> order;
  std::vector<index_t> sequences;
  const bool looks_back = Window != id_window::word;
  const auto kept = c.integers("expected.kept");
  if (looks_back && std::find(kept.begin(), kept.end(), 0) != kept.end()) throw unsupported("drops, by an order that is not ours");
  for (index_t t = 0; t < T; ++t) order.from.push_back(looks_back ? t % length * B + t / length : t);
  for (index_t s = 0; looks_back && s <= B; ++s) sequences.push_back(s * length);
  const auto file_ids = c.integers("token_ids");
  std::vector<index_t> ids;
  for (const index_t t : order.from) ids.push_back(file_ids.at(static_cast<std::size_t>(t)));

  const auto limit = capacity_limit::vmoe(c.template setting<double>("capacity_factor"), capacity_rounding::down, 0);
  if (limit.of({.tokens = T, .top_k = 1, .experts = E}) != c.template setting<index_t>("capacity")) throw unsupported("this capacity");
  using distilled_type = token_id_gate<Scalar, Window>;
  using router_type = stable_router<Scalar, distilled_type>;
  const router_type router(linear_gate<Scalar>(D, E),
                           distilled_type(D, E, c.template setting<index_t>("V"), c.template setting<index_t>("router_dim")),
                           {.first_stage = 10}, position_capacity(limit));
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  context.step = c.template setting<index_t>("stage") == 1 ? 0 : 10;
  context.token_ids = ids;
  context.sequences = sequences;

  using expert_type = change_expert<sublayers<Scalar>>;
  const expert_type expert(sublayers<Scalar>(D, c.template setting<index_t>("H"), c.template setting<index_t>("L")));
  residual_layer layer{moe_layer{router, expert_bank<expert_type>(E, expert)}};
  bindings<Scalar> bound, distilled;
  bind_centroids(bound, layer.router());
  bind_distilled(distilled, layer.router());
  bind_sublayers(bound, layer.bank(), [](auto& e) -> auto& { return e.inner(); });
  bound.load(c);
  distilled.load(c);
  const matrix<Scalar> x = order.read(c.rows("x"));
  matrix<Scalar> y(T, D), dx(T, D);
  typename decltype(layer)::tape tape;
  layer.forward(x, y, tape, context);
  zero_gradients(layer);
  layer.backward(order.read(c.rows("grad_out")), dx, tape);
  c.check("y", order.written(y));
  c.check("grad.x", order.written(dx));
  bound.check_gradients(c, "grad");

  const auto& seen = tape.layer.router.seen;
  const auto& choices = tape.layer.router.base.choices;
  c.check("scores", order.written(copy(seen.clean)));
  c.check("distilled_scores", order.written(copy(seen.distilled)));
  std::vector<index_t> experts(choices.expert.begin(), choices.expert.end()), is_kept(choices.kept.begin(), choices.kept.end());
  std::vector<index_t> counts(static_cast<std::size_t>(E), 0);
  for (const index_t e : experts) ++counts.at(static_cast<std::size_t>(e));
  c.check_integers("indices", order.written(experts));
  c.check_integers("kept", order.written(is_kept));
  c.check_integers("counts", counts);
  std::vector<Scalar> weights;
  for (index_t t = 0; t < T; ++t) weights.push_back(choices.kept[t] ? choices.weight[t] : Scalar(0));
  c.check("weights", order.written(weights));

  check_stable_loss(c, "balance_loss", layer.router(), stable_balance{.coefficient = 1}, context, order);
  check_stable_loss(c, "distill_loss", layer.router(), distillation{.coefficient = 1}, context, order);
}

template <typename Scalar>
void stablemoe(oracle_case<Scalar>& c) {
  const auto router = c.template setting<std::string>("router");
  if (router == "wordemb")
    run_stable<Scalar, id_window::word>(c);
  else if (router == "bigram")
    run_stable<Scalar, id_window::bigram>(c);
  else if (router == "cnn")
    run_stable<Scalar, id_window::causal>(c);
  else
    throw unsupported("distilled router " + router);
}

}  // namespace

std::vector<replayer> stable_routers() { return {{"stablemoe", stablemoe<float>, stablemoe<double>}}; }

}  // namespace oracle
