// One decision a sample, of scores from elsewhere: AdvMoE.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/linear.hpp>
#include <sluice/router/masked/per_sample.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- AdvMoE ----------------------------------------------------------------------------------------------------------

template <typename Scalar>
void advmoe(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto groups = c.groups();
  const matrix<Scalar> scores = c.rows("scores");
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  context.group_features = scores;
  using gate = per_group_gate<identity_gate<Scalar>, group_source::group_vector>;
  for (const bool all : {false, true}) {
    moe_layer layer{advmoe_router<Scalar>(gate(D, identity_gate<Scalar>(E)), {.all_experts = all}),
                    expert_bank<linear_expert<Scalar>>(E, D, c.template setting<index_t>("W"))};
    bindings<Scalar> bound;
    for (index_t e = 0; e < E; ++e)
      bound.bind("experts.weight", layer.bank().expert(e).weight(), e * layer.bank().expert(e).weight().size());
    bound.load(c);
    typename decltype(layer)::tape tape;
    check_task(c, layer, tape, bound, context);
    c.check(all ? "full_estimator" : "grad.scores", copy(tape.router.gate.group_gradient()));
    std::vector<index_t> chosen;
    for (index_t b = 0; b < context.group_count(); ++b) {
      const index_t t = groups[static_cast<std::size_t>(b)];
      chosen.push_back(tape.router.choices.expert[t * tape.router.choices.top_k]);
    }
    c.check_integers("indices", chosen);
  }
}

}  // namespace

std::vector<replayer> per_sample() {
  return {{"advmoe", advmoe<float>, advmoe<double>}};
}

}  // namespace oracle
