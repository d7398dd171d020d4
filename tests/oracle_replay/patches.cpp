// Experts that take the best patches of every image: pMoE's three gates, in two models.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/layer/images/patch_experts.hpp>

namespace oracle {
namespace {

using namespace sluice;

/// How the files call the parts of a model, and what it makes of the experts' units [rows of the plan, W].
template <typename Scalar>
struct patch_model {
  std::string form, router, experts;
  matrix<Scalar> output;  ///< [E,W] weights of one number an image; empty: units of all experts side by side
};

template <typename Scalar>
void check_gates(oracle_case<Scalar>& c, const sparse_plan<Scalar>& plan, const matrix_buffer<Scalar>& logits,
                 index_t n) {
  const index_t images = plan.tokens() / n, E = plan.experts();
  matrix<Scalar> gates = matrix<Scalar>::Zero(images * E, n), scores = gates;
  std::vector<index_t> taken;
  for (index_t b = 0; b < images; ++b)
    for (index_t e = 0; e < E; ++e) {
      for (index_t j = 0; j < n; ++j) scores(b * E + e, j) = logits(b * n + j, e);
      const row_range own = plan.by_expert().of(e);
      for (index_t i = own.begin; i < own.end; ++i)
        if (plan.token(i) / n == b) {
          taken.push_back(plan.token(i) % n);
          gates(b * E + e, taken.back()) = plan.weight(i) * plan.input_scale(i);
        }
    }
  c.check("gates", gates);
  c.check("scores", scores);
  c.check_integers("indices", taken);
}

/// y_b = mean over n (or l) of relu(experts (G x)), side by side or added up by `output`. The files have patches as rows:
/// an image of n lines, of which each is a window.
template <typename Scalar>
void run_patches(oracle_case<Scalar>& c, const patch_model<Scalar>& model, index_t l) {
  const auto E = c.template setting<index_t>("E");
  const index_t n = c.axis("x", 1), D = c.axis("x", 2), W = c.axis(model.experts, 1), images = c.axis("x", 0);
  const patch_gate form = model.form == "topk_softmax"   ? patch_gate::over_taken
                          : model.form == "softmax_topk" ? patch_gate::over_patches
                                                         : patch_gate::even;
  const bool side_by_side = model.output.size() == 0;
  pmoe_layer<Scalar> layer({1, n, D}, {1, D, 1, 0}, E, W, l, form,
                           side_by_side ? patch_mean::of_all : patch_mean::of_taken);
  bindings<Scalar> bound;
  bound.bind(model.router, layer.router().gate().weight());
  for (index_t e = 0; e < E; ++e) bound.bind(model.experts, layer.bank().expert(e).weight(), e * W * D);
  bound.load(c);
  ensure_gradients(layer);
  const std::vector<Scalar> numbers = c.numbers("x");
  const matrix<Scalar> x = const_matrix_map<Scalar>(numbers.data(), images, n * D), dy = c.rows("grad_out");
  matrix<Scalar> units(images, E * W), dunits, dx(images, n * D);
  typename pmoe_layer<Scalar>::tape tape;
  layer.forward(x, units, tape);
  check_gates(c, tape.plan, tape.router.seen.clean, n);
  if (side_by_side) {
    c.check("y", units);
    dunits = dy;
  } else {
    const const_matrix_map<Scalar> head(model.output.data(), 1, E * W), dscores(dy.data(), images, 1);
    c.check("y", matrix<Scalar>(units * head.transpose()));
    c.check("grad.output.weight", matrix<Scalar>(dscores.transpose() * units));
    dunits = dscores * head;
  }
  layer.backward(dunits, dx, tape);
  c.check("grad.x", dx);
  bound.check_gradients(c, "grad");
}

template <typename Scalar>
void pmoe_gate(oracle_case<Scalar>& c) {
  run_patches<Scalar>(c, {c.template setting<std::string>("variant"), "router.weight", "experts.weight", {}},
                      c.template setting<index_t>("l"));
}

template <typename Scalar>
void pmoe(oracle_case<Scalar>& c) {
  const auto kind = c.template setting<std::string>("kind");
  run_patches<Scalar>(
      c, {kind == "softmax_all" ? "softmax_topk" : kind, "gate.weight", "experts.weight", c.rows("output.weight")},
      c.template setting<index_t>("l"));
}

}  // namespace

std::vector<replayer> patches() {
  return {{"pmoe_gate", pmoe_gate<float>, pmoe_gate<double>}, {"pmoe", pmoe<float>, pmoe<double>}};
}

}  // namespace oracle
