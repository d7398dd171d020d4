/// A router under test, in a layer of small smooth experts, with random tokens to run on.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/train/conformance/batch.hpp>
#include <sluice/train/conformance/plan_words.hpp>
#include <sluice/train/conformance/report.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct router_check_options {
  std::uint64_t seed = 1;             ///< of tokens, experts and draws; the router keeps its own parameters
  index_t tokens = 67;                ///< more than two blocks of rows, so that threads have something to share
  index_t gradient_tokens = 9;        ///< fewer for gradients, which need two calls an entry
  routing_context<Scalar> context{};  ///< what the router needs besides x; training and executor are set by the kit
  gradient_check_options gradients{.most_entries = 100};
  double gradient_bound = 1e-6;
};

namespace detail {

template <RouterPolicy Router>
class router_probe {
public:
  using scalar = typename Router::scalar;
  using layer_type = moe_layer<Router, expert_bank<ffn<scalar, silu>>>;
  using workspace = typename layer_type::workspace;
  using tape = typename layer_type::tape;
  using batch = picked_batch<scalar>;
  static constexpr bool trains = DifferentiableRouter<Router>;
  static constexpr bool causal = is_causal<Router>;

  /// Everything that a training step computes. Gradients are empty if the router cannot be trained.
  struct results {
    std::vector<scalar> plan;
    matrix<scalar> y;
    matrix<scalar> dx;
    std::vector<scalar> gradients;

    bool operator==(const results& other) const {
      return equal_bits(plan, other.plan) && equal_bits(y, other.y) && equal_bits(dx, other.dx) &&
             equal_bits(gradients, other.gradients);
    }
  };

  router_probe(const Router& router, const router_check_options<scalar>& o)
      : options(o),
        layer(router, make_bank(router, o.seed)),
        x(random_rows<scalar>(o.tokens, router.inputs(), o.seed + 1)) {
    if (o.tokens < 4 || o.gradient_tokens < 1 || o.gradient_tokens > o.tokens)
      throw_invalid("check_router needs at least 4 tokens and 1 <= gradient_tokens <= tokens, not ", o.tokens, " and ",
                    o.gradient_tokens);
    check_context(o.context, o.tokens);
    options.context.random = random_source(o.seed + 2, 1);
  }

  index_t tokens() const { return options.tokens; }
  batch pick(const std::vector<index_t>& rows) const { return batch(x, options.context, rows); }
  batch everything() const { return pick(ascending_rows(tokens())); }
  batch copies_of_token_0() const { return pick(std::vector<index_t>(static_cast<std::size_t>(tokens()), 0)); }

  matrix<scalar> infer(const matrix<scalar>& input, const routing_context<scalar>& context, workspace& ws) const {
    matrix<scalar> y(input.rows(), layer.outputs());
    layer.forward(input, y, ws, context);
    return y;
  }

  matrix<scalar> cotangent(index_t rows) const { return random_rows<scalar>(rows, layer.outputs(), options.seed + 3); }

  /// Forward and backward with gradients that start at zero.
  results step(const matrix<scalar>& input, const routing_context<scalar>& context, tape& t, const matrix<scalar>& dy) {
    results r;
    r.y.resize(input.rows(), layer.outputs());
    layer.forward(input, r.y, t, context);
    r.plan = words_of(t.plan);
    if constexpr (trains) {
      zero_gradients(layer);
      r.dx.resize(input.rows(), layer.inputs());
      layer.backward(dy, r.dx, t);
      r.gradients = parameter_gradients(layer);
    }
    return r;
  }
  results step(const batch& b, const routing_context<scalar>& context, tape& t) {
    return step(b.x, context, t, cotangent(b.x.rows()));
  }

  router_check_options<scalar> options;
  layer_type layer;
  matrix<scalar> x;

private:
  static expert_bank<ffn<scalar, silu>> make_bank(const Router& router, std::uint64_t seed) {
    expert_bank<ffn<scalar, silu>> bank(router.experts(), router.inputs(), 3, {.bias = true});
    initialize(bank, seed);
    return bank;
  }
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
