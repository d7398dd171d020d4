// Attention whose maps are routed: mixtures of attention heads, JetMoE's attention.
#include "layer_run.hpp"
#include "replays.hpp"
#include "sequences.hpp"

#include <sluice/attention/routed_query_attention.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/loss/router_z.hpp>
#include <sluice/loss/switch_balance.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- mixture of attention heads --------------------------------------------------------------------------------------

template <typename Scalar, attention_order Order>
void mixture_of_heads(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  const sequences_of_case<Scalar> sequences(c);
  const top_k_router<Scalar> router(D, E, {.top_k = c.template setting<index_t>("k"), .weights = weighting::pre});
  mixture_of_attention_heads<Scalar, Order> layer(router, {.head_width = c.template setting<index_t>("head_dim")});
  const auto bind_gate = [](auto& r, bindings<Scalar>& b) {
    b.bind("router.kernel", r.gate().weight(), 0, layout::transposed);
  };
  bindings<Scalar> bound;
  bind_gate(layer.router(), bound);
  bind_maps(bound, layer.query(), "experts.query_kernel", layout::transposed);
  bind_maps(bound, layer.output(), "experts.output_kernel", layout::transposed);
  bound.bind("k_proj.weight", layer.key());
  bound.bind("v_proj.weight", layer.value());
  bound.load(c);
  typename decltype(layer)::tape tape;
  const auto context = sequences.context();
  check_task(c, layer, tape, bound, context);
  if (sequences.mask.empty()) {
    check_choices(c, tape.router, tape.plan);
  } else {
    c.check("combine", tape.plan.dense_weights());
    std::vector<index_t> counts;
    for (index_t e = 0; e < E; ++e) counts.push_back(tape.plan.load(e));
    c.check_integers("counts", counts);
  }
  check_losses(
      c, "cv_loss", router, bind_gate, context, 0,
      importance_loss{.coefficient = 1, .source = importance_source::chosen_probabilities, .form = variance::unbiased});
  check_losses(c, "switch_loss", router, bind_gate, context, 0,
               switch_balance{.coefficient = 1, .share = balance_share::survivors});
  auto with_padding = context;  // whose logits the source counts here
  with_padding.token_mask = {};
  check_losses(c, "z_loss", router, bind_gate, with_padding, 0, router_z_loss{.coefficient = 1});
}

template <typename Scalar>
void moa(oracle_case<Scalar>& c) {
  if (c.template setting<bool>("causal"))
    mixture_of_heads<Scalar, attention_order::causal>(c);
  else
    mixture_of_heads<Scalar, attention_order::bidirectional>(c);
}

// ---- JetMoE ----------------------------------------------------------------------------------------------------------

/// [B, heads, N, N] what every query made of the scores, from what a tape holds.
template <typename Scalar>
std::vector<Scalar> attention_probabilities(const typename dot_product_attention<Scalar>::tape& t, index_t key_heads,
                                            index_t width, std::span<const index_t> borders) {
  std::vector<Scalar> all;
  for (std::size_t s = 0; s + 1 < borders.size(); ++s)
    for (index_t h = 0; h < t.q.cols() / width; ++h)
      for (index_t i = borders[s]; i < borders[s + 1]; ++i)
        for (index_t j = borders[s]; j < borders[s + 1]; ++j) {
          const auto q = t.q.map().row(i).segment(h * width, width);
          const auto k = t.k.map().row(j).segment(h % key_heads * width, width);
          const Scalar score = q.dot(k) / std::sqrt(static_cast<Scalar>(width));
          all.push_back(j <= i ? std::exp(score - t.log_sums(i, h)) : Scalar(0));
        }
  return all;
}

}  // namespace

template <typename Scalar>
void jetmoe_attention_block(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  const auto key_heads = c.template setting<index_t>("kv_heads"), width = c.template setting<index_t>("head_dim");
  const auto base = c.template setting<double>("rope_theta");
  const sequences_of_case<Scalar> sequences(c);
  jetmoe_attention<Scalar> layer(
      top_k_router<Scalar>(
          D, E, {.top_k = c.template setting<index_t>("k"), .weights = weighting::post, .constant_weight = true}),
      {.key_heads = key_heads,
       .head_width = width,
       .output_bias = true,
       .rotary = {.width = base > 0 ? width : 0, .base = base > 0 ? base : 1}});
  bindings<Scalar> bound;
  bound.bind("router.weight", layer.router().gate().weight());
  bind_maps(bound, layer.query(), "experts.query", layout::as_stored);
  bind_maps(bound, layer.output(), "experts.output", layout::as_stored);
  bound.bind("kv.weight", layer.key());
  bound.bind("kv.weight", layer.value(), layer.key().size());
  bound.bind("bias", layer.output_bias());
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, sequences.context());
  c.check("logits", copy(tape.router.seen.clean));
  check_choices(c, tape.router, tape.plan);
  c.check("attention",
          std::span<const Scalar>(attention_probabilities<Scalar>(tape.heads, key_heads, width, sequences.borders)));
}
template void jetmoe_attention_block(oracle_case<float>&);
template void jetmoe_attention_block(oracle_case<double>&);

std::vector<replayer> attention_mixtures() { return {{"moa", moa<float>, moa<double>}}; }

}  // namespace oracle
