// SwitchHead: attention whose values and outputs are experts' of every head, and MoEUT's stack of it.
#include "layer_run.hpp"
#include "replays.hpp"
#include "sequences.hpp"

#include <sluice/attention/routed_value_attention.hpp>
#include <sluice/attention/universal_transformer.hpp>
#include <sluice/loss/entropy.hpp>
#include <sluice/router/every_expert/dense.hpp>

namespace oracle {
namespace {

using namespace sluice;

/// Rows of a case in the place of normalised tokens, and what comes back to them.
template <typename Scalar>
class given_rows {
public:
  using scalar = Scalar;
  struct tape {};

  explicit given_rows(matrix<Scalar> rows) : rows_(std::move(rows)), gradient_(rows_.rows(), rows_.cols()) {}

  void forward(tokens_in<Scalar>, tokens_out<Scalar> y, tape&, const executor_ref&) const { y = rows_; }
  void backward(tokens_in<Scalar>, tokens_in<Scalar> dy, tape&, tokens_out<Scalar>, const executor_ref&,
                index_t first) {
    gradient_.middleRows(first, dy.rows()) = dy;
  }

  /// The gradient since the last call.
  matrix<Scalar> take_gradient() {
    matrix<Scalar> taken = matrix<Scalar>::Zero(rows_.rows(), rows_.cols());
    std::swap(taken, gradient_);
    return taken;
  }

private:
  matrix<Scalar> rows_, gradient_;
};

/// Experts of the heads' own numbering, and what a router made of the tokens, head by head.
template <typename Scalar>
void check_head_choices(oracle_case<Scalar>& c, const std::string& side, const auto& memory, index_t experts_of_head) {
  c.check(side + "_scores", copy(memory.router.scores));
  std::vector<index_t> own;
  for (const index_t e : memory.router.choices.expert.span()) own.push_back(e % experts_of_head);
  c.check_integers(side + "_indices", own);
  c.check(side + "_weights", memory.router.choices.weight.span());
}

template <typename Scalar>
void bind_switch_head(bindings<Scalar>& b, auto& layer, const std::string& prefix) {
  b.bind(prefix + "q.weight", layer.query());
  b.bind(prefix + "k.weight", layer.key());
  b.bind(prefix + "sel_o", layer.output_router().router().gate().weight());
}
template <typename Scalar>
void bind_switch_head_experts(bindings<Scalar>& b, auto& layer, const std::string& prefix) {
  b.bind(prefix + "sel_v", layer.value_router().router().gate().weight());
  bind_maps(b, layer.value(), prefix + "v", layout::transposed);
  bind_maps(b, layer.output(), prefix + "o", layout::transposed);
}

template <typename Scalar>
routed_value_options switch_head_options(const oracle_case<Scalar>& c) {
  const auto width = c.template setting<index_t>("head_dim");
  return {.heads = c.template setting<index_t>("heads"),
          .key_width = width,
          .rotary = {.width = c.template setting<bool>("rope") ? width / 2 : 0}};
}

/// Both inputs of the published layer: choices, queries and keys from q_src, values from v_src.
template <typename Scalar, typename Layer>
void run_switch_head(oracle_case<Scalar>& c, Layer& layer, const bindings<Scalar>& bound, typename Layer::tape& tape,
                     const routing_context<Scalar>& context, const matrix<Scalar>& dy, const std::string& prefix) {
  const matrix<Scalar> x = c.rows("v_src");
  matrix<Scalar> y(x.rows(), x.cols()), dx(x.rows(), x.cols());
  zero_gradients(layer);
  layer.norm().take_gradient();
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  if (prefix == "grad") c.check("y", y);
  if (prefix == "grad") c.check(prefix + ".v_src", dx);
  c.check(prefix + ".q_src", layer.norm().take_gradient());
  bound.check_gradients(c, prefix);
}

template <typename Scalar>
void switch_head_with_experts(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  const auto options = switch_head_options(c);
  const sequences_of_case<Scalar> sequences(c, "v_src");
  routing_context<Scalar> context;
  context.training = true;
  context.groups = sequences.borders;
  const auto layer_with = [&](double coefficient) {
    const head_router routing{
        sigmoid_router<Scalar>(D, options.heads * E,
                               switch_head_routing<Scalar>(options.heads, c.template setting<index_t>("k"))),
        entropy_loss{.coefficient = coefficient, .parts = options.heads}};
    return routed_value_attention(routing, routing, given_rows<Scalar>(c.rows("q_src")), options);
  };
  auto layer = layer_with(0), regularised = layer_with(1);
  const auto bind = [](auto& one) {
    bindings<Scalar> b;
    bind_switch_head(b, one, "");
    bind_switch_head_experts(b, one, "");
    return b;
  };
  const bindings<Scalar> bound = bind(layer), bound_loss = bind(regularised);
  bound.load(c), bound_loss.load(c);
  const matrix<Scalar> dy = c.rows("grad_out");
  typename decltype(layer)::tape tape;
  run_switch_head(c, layer, bound, tape, context, dy, "grad");
  check_head_choices(c, "value", tape.value, E);
  check_head_choices(c, "output", tape.output, E);
  if (!c.template setting<bool>("train")) return;
  run_switch_head(c, regularised, bound_loss, tape, context, matrix<Scalar>(matrix<Scalar>::Zero(dy.rows(), dy.cols())),
                  "grad_reg_loss");
  c.check("reg_loss", tape.loss());
}

/// One expert a head: every value is there, and a sigmoid gates the head's result.
template <typename Scalar>
void switch_head_with_gates(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto options = switch_head_options(c);
  const index_t heads = options.heads, width = options.key_width;
  const sequences_of_case<Scalar> sequences(c, "v_src");
  routed_value_attention layer(head_router{dense_router<Scalar>(D, heads)},
                               head_router{sigmoid_router<Scalar>(D, heads, switch_head_routing<Scalar>(heads, 1))},
                               given_rows<Scalar>(c.rows("q_src")), options);
  bindings<Scalar> bound;
  bind_switch_head(bound, layer, "");
  bind_maps(bound, layer.value(), "v", layout::as_stored);
  for (index_t a = 0; a < heads; ++a)
    bound.bind_at("o", layer.output().expert(a).weight(), {a * width, heads * width, 1});
  bound.load(c);
  typename decltype(layer)::tape tape;
  run_switch_head(c, layer, bound, tape, sequences.context(), c.rows("grad_out"), "grad");
}

template <typename Scalar>
void shared_stack(oracle_case<Scalar>& c) {
  const auto size = [&](const char* name) { return c.template setting<index_t>(name); };
  moeut<Scalar> stack = make_moeut<Scalar>({.width = size("D"),
                                            .layers = size("layers"),
                                            .taking_turns = size("group_size"),
                                            .heads = size("heads"),
                                            .key_width = size("head_dim"),
                                            .attention_experts = size("E_att"),
                                            .attention_top_k = size("k_att"),
                                            .experts = size("E"),
                                            .hidden = size("H"),
                                            .top_k = size("k")});
  bindings<Scalar> bound;
  for (index_t g = 0; g < stack.layers(); ++g) {
    const std::string prefix = "layers." + std::to_string(g) + ".";
    auto& attention = stack.layer(g).template layer<0>().layer();
    auto& mixture = stack.layer(g).template layer<1>().layer();
    const auto bind_norm = [&](const std::string& name, auto& norm) {
      bound.bind(prefix + name + ".weight", norm.gain());
      bound.bind(prefix + name + ".bias", norm.bias());
    };
    bind_switch_head(bound, attention, prefix + "attention.");
    bind_switch_head_experts(bound, attention, prefix + "attention.");
    bind_norm("ln1", attention.norm());
    bind_norm("ln2", mixture.router().gate().norm());
    bound.bind(prefix + "ffn.expert_sel", mixture.router().gate().inner().weight());
    const std::string keys = prefix + "ffn.keys", values = prefix + "ffn.values";
    bind_ffn(bound, mixture.bank(), {keys.c_str(), values.c_str(), layout::transposed, layout::transposed}, false);
  }
  bound.load(c);
  typename moeut<Scalar>::tape tape;
  check_task(c, stack, tape, bound, sequences_of_case<Scalar>(c).context());
}

template <typename Scalar>
void switchhead(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("kind") == "stack") return shared_stack(c);
  if (c.template setting<index_t>("E") == 1)
    switch_head_with_gates(c);
  else
    switch_head_with_experts(c);
}

}  // namespace

std::vector<replayer> switch_heads() { return {{"switchhead", switchhead<float>, switchhead<double>}}; }

}  // namespace oracle
