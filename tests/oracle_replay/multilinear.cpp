// Multilinear mixtures: many linear experts in one factorised tensor (muMoE).
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/gate/batch_normalized.hpp>
#include <sluice/gate/centred.hpp>
#include <sluice/layer/multilinear/multilinear_layer.hpp>
#include <sluice/router/every_expert/dense_entmax.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>

#include <functional>

namespace oracle {
namespace {

using namespace sluice;

/// Where element (row, column) of a factor's matrix lies in its tensor; a bias is one column more.
using tensor_place = std::function<index_t(index_t, index_t)>;

template <typename Scalar>
class factor_tensors {
public:
  void bind(std::string tensor, linear_expert<Scalar>& map, tensor_place place) {
    entries_.push_back({std::move(tensor), &map, std::move(place)});
  }

  void load(const oracle_case<Scalar>& c) const {
    for (const entry& e : entries_) {
      const auto values = c.numbers(e.tensor);
      const index_t inputs = e.map->inputs();
      e.map->weight().fill([&](index_t i) { return values.at(as_size(e.place(i / inputs, i % inputs))); });
      e.map->bias().fill([&](index_t i) { return values.at(as_size(e.place(i, inputs))); });
    }
  }

  void check_gradients(oracle_case<Scalar>& c) const {
    for (const auto& [tensor, map, place] : entries_) {
      std::vector<Scalar> gradient(c.numbers(tensor).size());
      const matrix<Scalar> weight = map->weight().gradient_matrix();
      for (index_t r = 0; r < map->outputs(); ++r) {
        for (index_t i = 0; i < map->inputs(); ++i) gradient.at(as_size(place(r, i))) = weight(r, i);
        if (map->bias().size() > 0) gradient.at(as_size(place(r, map->inputs()))) = map->bias().gradient()[as_size(r)];
      }
      c.check("grad." + tensor, std::span<const Scalar>(gradient));
    }
  }

private:
  struct entry {
    std::string tensor;
    linear_expert<Scalar>* map;
    tensor_place place;
  };
  std::vector<entry> entries_;
};

template <typename Contraction, typename Scalar>
multilinear_map<Scalar, Contraction> factorised_map(const oracle_case<Scalar>& c, const std::string& name) {
  const auto experts = c.config().at("E").template get<std::vector<index_t>>();
  const auto levels = static_cast<index_t>(experts.size());
  const bool bias = c.template setting<bool>("use_bias");
  const auto tensor = [&](index_t i) { return name + ".factor." + std::to_string(i); };
  if constexpr (std::same_as<Contraction, elementwise_contraction>) {
    return {experts,
            c.axis(tensor(levels), 0) - bias,
            c.axis(tensor(levels + 1), 0),
            elementwise_contraction{levels, c.axis(tensor(0), 1)},
            {.bias = bias}};
  } else {
    std::vector<index_t> bonds;
    for (index_t i = 0; i <= levels + 1; ++i) bonds.push_back(c.axis(tensor(i), 0));
    return {experts,
            c.axis(tensor(levels), 1) - bias,
            c.axis(tensor(levels + 1), 1),
            ring_contraction{bonds},
            {.bias = bias}};
  }
}

template <typename Contraction, typename Scalar>
void bind_map(const oracle_case<Scalar>& c, multilinear_map<Scalar, Contraction>& map, const std::string& name,
              factor_tensors<Scalar>& bound) {
  for (index_t i = 0; i < map.factors(); ++i) {
    const std::string tensor = name + ".factor." + std::to_string(i);
    const bool is_out = i + 1 == map.factors();
    if constexpr (std::same_as<Contraction, elementwise_contraction>) {
      const index_t rank = c.axis(tensor, 1);  // [N or I or O, R]
      bound.bind(tensor, map.factor(i), [=](index_t r, index_t n) { return is_out ? r * rank + n : n * rank + r; });
    } else {
      const index_t from = c.axis(tensor, 0), middle = c.axis(tensor, 1), to = c.axis(tensor, 2);
      if (is_out)  // [c, o, a] for M [a, c]
        bound.bind(tensor, map.factor(i),
                   [=](index_t o, index_t m) { return (m % from * middle + o) * to + m / from; });
      else
        bound.bind(tensor, map.factor(i), [=](index_t m, index_t n) { return (m / to * middle + n) * to + m % to; });
    }
  }
}

template <typename Router, typename Contraction, typename Scalar, typename Norm = no_norm<Scalar>>
void run_multilinear(oracle_case<Scalar>& c) {
  const auto experts = c.config().at("E").template get<std::vector<index_t>>();
  const auto D = c.template setting<index_t>("D");
  std::vector<Router> routers;
  for (const index_t n : experts) routers.push_back(Router(D, n));
  factor_tensors<Scalar> factors;
  std::optional<multilinear_map<Scalar, Contraction>> second;
  if (c.template setting<index_t>("second_dim") > 0) second = factorised_map<Contraction>(c, "layer2");
  std::optional<Norm> norm;
  if constexpr (!leaves_rows<Norm>) norm.emplace(D, typename Norm::options{.bias = true});
  multilinear_layer<Router, Contraction, gelu, Norm> layer{std::move(routers), factorised_map<Contraction>(c, "layer1"),
                                                           std::move(second), std::move(norm)};
  bind_map(c, layer.first(), "layer1", factors);
  if (c.has("layer2.factor.0")) bind_map(c, layer.second(), "layer2", factors);
  factors.load(c);
  bindings<Scalar> bound;
  for (index_t l = 0; l < layer.levels(); ++l) {
    auto& gate = layer.router(l).gate();
    const std::string level = "." + std::to_string(l);
    bound.bind("router.proj" + level, gate.inner().weight(), 0, layout::transposed);
    if constexpr (requires { gate.variance(); })
      if (c.has("gate_norm.mean" + level)) {
        const auto mean = c.numbers("gate_norm.mean" + level), variance = c.numbers("gate_norm.var" + level);
        gate.mean().fill([&](index_t e) { return mean.at(as_size(e)); });
        gate.variance().fill([&](index_t e) { return variance.at(as_size(e)); });
      }
  }
  if constexpr (!leaves_rows<Norm>) {
    bound.bind("input_ln.weight", layer.norm().gain());
    bound.bind("input_ln.bias", layer.norm().bias());
  }
  bound.load(c);
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  factors.check_gradients(c);
  for (index_t l = 0; l < layer.levels(); ++l)
    c.check("coefficients." + std::to_string(l), copy(tape.levels[as_size(l)].router.weights));
  layer.after_step(tape);
  if constexpr (requires { layer.router(0).gate().variance(); }) {
    c.check("running_mean.0", std::span<const Scalar>(std::as_const(layer.router(0).gate().mean()).value()));
    c.check("running_var.0", std::span<const Scalar>(std::as_const(layer.router(0).gate().variance()).value()));
  }
}

template <typename Scalar>
void mumoe(oracle_case<Scalar>& c) {
  using centred = centred_gate<linear_gate<Scalar>>;
  using batched = batch_normalized_gate<linear_gate<Scalar>>;
  const std::string kind = c.template setting<std::string>("kind") + "_" +
                           c.template setting<std::string>("gate_norm") + "_" +
                           c.template setting<std::string>("activation");
  if (c.template setting<bool>("input_layernorm"))
    run_multilinear<dense_entmax_router<Scalar, centred>, elementwise_contraction, Scalar, layer_norm<Scalar>>(c);
  else if (kind == "cp_ln_softmax")
    run_multilinear<dense_softmax_router<Scalar, centred>, elementwise_contraction>(c);
  else if (kind == "cp_bn_entmax15")
    run_multilinear<dense_entmax_router<Scalar, batched>, elementwise_contraction>(c);
  else if (kind == "tr_bn_softmax")
    run_multilinear<dense_softmax_router<Scalar, batched>, ring_contraction>(c);
  else if (kind == "tr_ln_entmax15")
    run_multilinear<dense_entmax_router<Scalar, centred>, ring_contraction>(c);
  else
    throw unsupported("a multilinear mixture of kind " + kind);
}

}  // namespace

std::vector<replayer> multilinear_mixtures() { return {{"mumoe", mumoe<float>, mumoe<double>}}; }

}  // namespace oracle
