// Experts that take the best patches of every image: pMoE's three gates, in two models.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/linear.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/router/experts_choose/patch_level.hpp>

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

/// y_b = mean over n (or l) of relu(experts (G x)), side by side or added up by `output`.
template <typename Scalar>
void run_patches(oracle_case<Scalar>& c, const patch_model<Scalar>& model, index_t l) {
  const auto E = c.template setting<index_t>("E");
  const matrix<Scalar> x = c.rows("x");
  const index_t n = c.axis("x", 1), D = x.cols(), W = c.axis(model.experts, 1), images = x.rows() / n;
  const patch_gate form = model.form == "topk_softmax"   ? patch_gate::over_taken
                          : model.form == "softmax_topk" ? patch_gate::over_patches
                                                         : patch_gate::even;
  pmoe_router<Scalar> router(D, E, l, form);
  expert_bank<linear_expert<Scalar>> bank(E, D, W);
  bindings<Scalar> bound;
  bound.bind(model.router, router.gate().weight());
  for (index_t e = 0; e < E; ++e) bound.bind(model.experts, bank.expert(e).weight(), e * W * D);
  bound.load(c);
  ensure_gradients(router), ensure_gradients(bank);
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.groups = groups;
  sparse_plan<Scalar> plan;
  typename pmoe_router<Scalar>::tape tape;
  router.route(x, context, plan, tape);
  tape.dseen.zero_like(tape.seen);
  check_gates(c, plan, tape.seen.clean, n);

  matrix<Scalar> rows(plan.rows(), D), units(plan.rows(), W), drows(plan.rows(), D), dunits(plan.rows(), W);
  typename expert_bank<linear_expert<Scalar>>::tape experts;
  dispatch(plan, x, rows, context.executor);
  bank.forward(rows, plan.by_expert(), units, experts, context.executor);
  const bool side_by_side = model.output.size() == 0;
  const Scalar share = 1 / static_cast<Scalar>(side_by_side ? n : l);
  const matrix<Scalar> dy = c.rows("grad_out");
  matrix<Scalar> y = matrix<Scalar>::Zero(images, side_by_side ? E * W : 1);
  matrix<Scalar> doutput = matrix<Scalar>::Zero(model.output.rows(), model.output.cols());
  for (index_t i = 0; i < plan.rows(); ++i) {
    const index_t b = plan.token(i) / n, e = plan.expert(i);
    for (index_t w = 0; w < W; ++w) {
      const Scalar unit = share * std::max(units(i, w), Scalar(0)), slope = units(i, w) > 0 ? share : Scalar(0);
      if (side_by_side) {
        y(b, e * W + w) += unit;
        dunits(i, w) = slope * dy(b, e * W + w);
      } else {
        y(b, 0) += model.output(e, w) * unit;
        dunits(i, w) = slope * model.output(e, w) * dy.data()[b];
        doutput(e, w) += unit * dy.data()[b];
      }
    }
  }
  c.check("y", y);
  if (!side_by_side) c.check("grad.output.weight", doutput);
  matrix<Scalar> dx = matrix<Scalar>::Zero(x.rows(), D);
  sparse_plan_gradient<Scalar> dplan;
  dplan.weight.assign(plan.rows(), Scalar(0));
  bank.backward(rows, plan.by_expert(), dunits, drows, experts, context.executor);
  dispatch_backward(plan, x, drows, dx, dplan, context.executor);
  router.backward(x, context, plan, dplan, tape, dx);
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
