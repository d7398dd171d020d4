#include <sluice/train/check_capacity.hpp>
#include <sluice/train/check_gate.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/check_loss.hpp>

#include <sluice/capacity/position.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/layer/decorator.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/loss/router_z.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <string>

using namespace sluice;

namespace {

/// The names of the properties that failed.
std::string failed(const conformance_report& report) {
  std::string names;
  for (const property_result& p : report.properties)
    if (p.result == outcome::failed) names += (names.empty() ? "" : ", ") + p.name;
  return names;
}

enum class gate_fault { none, counts_calls, adds_logits, looks_aside, hides_nan, draws, learns, wrong_gradient, sets_dx };

/// A linear gate that does one thing wrong.
class faulty_gate {
public:
  using scalar = double;
  struct tape {
    linear_gate<double>::tape inner;
  };

  explicit faulty_gate(gate_fault wrong) : wrong_(wrong), inner_(6, 5) { initialize(inner_, 3); }
  faulty_gate(const faulty_gate& other) : wrong_(other.wrong_), inner_(other.inner_) {}
  index_t inputs() const { return 6; }
  index_t experts() const { return 5; }

  void forward(tokens_in<double> x, const routing_context<double>& context, tokens_out<double> logits, tape& t) const {
    const matrix<double> held = logits;
    inner_.forward(x, context, logits, t.inner);
    if (x.rows() == 0) return;
    if (has(gate_fault::counts_calls)) logits.array() += 1e-3 * calls_++;
    if (has(gate_fault::adds_logits)) logits += held;
    if (has(gate_fault::looks_aside)) logits.array() += 1e-3 * x(0, 0);
    if (has(gate_fault::hides_nan)) logits = logits.unaryExpr([](double v) { return is_nan(v) ? 0.0 : v; });
    if (has(gate_fault::draws)) logits.array() += context.random.uniform(random_site::user_site, 0);
    if (has(gate_fault::learns)) inner_.weight().data()[0] += 1;
  }
  void backward(tokens_in<double> x, const routing_context<double>& context, tokens_in<double> dlogits, tape& t,
                tokens_out<double> dx) {
    if (has(gate_fault::sets_dx)) dx.setZero();
    const matrix<double> scaled = dlogits * (has(gate_fault::wrong_gradient) ? 1.01 : 1.0);
    inner_.backward(x, context, scaled, t.inner, dx);
  }
  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("inner", self.inner_);
  }

private:
  bool has(gate_fault f) const { return wrong_ == f; }
  gate_fault wrong_;
  mutable linear_gate<double> inner_;
  mutable int calls_ = 0;
};

enum class capacity_fault { none, forgets_a_choice, serves_unasked, skips_a_slot, ranks_backwards, changes_weights, draws };

/// Three places an expert, in the order of ranks; or one thing wrong.
struct faulty_capacity {
  static constexpr bool causal = false;
  capacity_fault wrong;

  template <typename Scalar>
  void serve(choice_table<Scalar>& choices, token_range group, index_t experts,
             const routing_context<Scalar>& context) const {
    const index_t first = choices.order.size();
    const index_t k = choices.top_k;
    const bool backwards = wrong == capacity_fault::ranks_backwards;
    for (index_t j = 0; j < k; ++j)
      for (index_t t = group.begin; t < group.end; ++t) {
        const index_t pair = t * k + (backwards ? k - 1 - j : j);
        if (choices.asked[pair] || (wrong == capacity_fault::serves_unasked && pair % 5 == 1)) choices.order.push_back(pair);
      }
    if (choices.order.size() == first) return;
    if (wrong == capacity_fault::forgets_a_choice) choices.order.resize(choices.order.size() - 1);
    const index_t places = wrong == capacity_fault::draws && context.random.uniform(random_site::user_site, 0) < 0.5 ? 2 : 3;
    choices.serve(first, experts, [&](index_t) { return places; });
    if (wrong == capacity_fault::skips_a_slot) ++choices.slot[choices.order[first]];
    if (wrong == capacity_fault::changes_weights) choices.weight[choices.order[first]] *= 2;
  }
};

enum class loss_fault { none, counts_nothing, reads_padding, wrong_gradient, sets_gradient };

/// coefficient × mean over tokens of the squares of the logits.
struct faulty_loss {
  loss_fault wrong = loss_fault::none;

  template <typename Plan>
  double operator()(const score_signals<double>& seen, const Plan&, const routing_context<double>& context,
                    score_gradients<double>& gradients) const {
    double sum = wrong == loss_fault::counts_nothing ? 1 : 0;
    if (wrong == loss_fault::sets_gradient) gradients.clean.map().setZero();
    for (index_t t = 0; t < seen.clean.rows(); ++t) {
      if (context.is_padding(t) && wrong != loss_fault::reads_padding) continue;
      for (index_t e = 0; e < seen.clean.cols(); ++e) {
        sum += 0.1 * seen.clean(t, e) * seen.clean(t, e);
        gradients.clean(t, e) += 0.2 * seen.clean(t, e) * (wrong == loss_fault::wrong_gradient ? 1.01 : 1);
      }
      if (context.is_padding(t)) sum += 1;
    }
    return sum;
  }
};

enum class layer_fault { none, fills_padding, adds_the_mean, counts_calls, wrong_gradient, spends_tape, names_twice };

/// y = 2 layer(x), or one thing wrong.
template <typename Layer>
class faulty_layer : public layer_decorator<faulty_layer<Layer>, Layer> {
  using base = layer_decorator<faulty_layer, Layer>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  faulty_layer(Layer layer, layer_fault wrong) : base(std::move(layer)), wrong_(wrong) {}

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory&, const context_type&, Inner inner) const {
    const scalar mean = x.size() == 0 ? scalar(0) : x.mean();
    inner(x, y);
    y *= 2;
    if (wrong_ == layer_fault::fills_padding) y.array() += 1;
    if (wrong_ == layer_fault::adds_the_mean) y.array() += mean;
    if (wrong_ == layer_fault::counts_calls) y.array() += calls_++;
  }
  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    const matrix<scalar> twice = 2 * dy;
    inner(twice, dx);
    if (wrong_ == layer_fault::wrong_gradient) dx *= 1.01;
    if (wrong_ == layer_fault::spends_tape) dx *= static_cast<scalar>(t.tokens--);
  }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    visit("own", self.own_);
    if (self.wrong_ == layer_fault::names_twice) visit("own", self.other_);
  }

  layer_fault wrong_;
  parameter<scalar> own_{{1}, parameter_role::state}, other_{{1}, parameter_role::state};
  mutable int calls_ = 0;
};

}  // namespace

TEST_CASE("check_gate: an honest gate passes, each broken promise fails by its name", "[train][conformance]") {
  linear_gate<double> honest(6, 5);
  initialize(honest, 3);
  const auto report = check_gate(honest);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.properties.size() == 9);
  for (const property_result& p : report.properties) CHECK(p.result == outcome::passed);

  const auto of = [](gate_fault wrong) { return failed(check_gate(faulty_gate(wrong))); };
  CHECK(of(gate_fault::none) == "");
  CHECK_THAT(of(gate_fault::counts_calls), Catch::Matchers::Contains("repetition"));
  CHECK_THAT(of(gate_fault::adds_logits), Catch::Matchers::Contains("repetition"));
  CHECK_THAT(of(gate_fault::looks_aside), Catch::Matchers::Contains("tokens on their own"));
  CHECK(of(gate_fault::hides_nan) == "NaN token");
  CHECK(of(gate_fault::draws) == "inference draws nothing");
  CHECK_THAT(of(gate_fault::learns), Catch::Matchers::Contains("calls change no parameter"));
  CHECK(of(gate_fault::wrong_gradient) == "gradients");
  CHECK(of(gate_fault::sets_dx) == "backward again");
  CHECK_THROWS_AS(check_gate(honest, {.tokens = 3}), std::invalid_argument);
}

TEST_CASE("check_capacity: an honest policy passes, each broken promise fails by its name", "[train][conformance]") {
  const auto report = check_capacity(position_capacity(capacity_limit::fixed(3)), {.experts = 7, .top_k = 3});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.properties.size() == 11);
  CHECK(check_capacity<float>(dropless{}).find("later tokens")->result == outcome::passed);

  const auto of = [](capacity_fault wrong) { return failed(check_capacity(faulty_capacity{wrong})); };
  CHECK(of(capacity_fault::none) == "");
  CHECK(of(capacity_fault::forgets_a_choice) == "served once, served once in training");
  CHECK_THAT(of(capacity_fault::serves_unasked), Catch::Matchers::Contains("served once, "));
  CHECK(of(capacity_fault::skips_a_slot) == "slots, slots in training");
  CHECK(of(capacity_fault::ranks_backwards) == "slots, slots in training");
  CHECK(of(capacity_fault::changes_weights) == "the table stays");
  CHECK(of(capacity_fault::draws) == "inference draws nothing");
  CHECK_THROWS_AS(check_capacity(dropless{}, {.experts = 2, .top_k = 3}), std::invalid_argument);
}

TEST_CASE("check_loss: an honest loss passes, each broken promise fails by its name", "[train][conformance]") {
  top_k_router<double> router{6, 5, {.top_k = 2}};
  initialize(router, 2);
  const auto report = check_loss(router_z_loss{.coefficient = 0.5}, router);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.properties.size() == 7);
  for (const property_result& p : report.properties) CHECK(p.result == outcome::passed);

  const auto of = [&](loss_fault wrong) { return failed(check_loss(faulty_loss{wrong}, router)); };
  CHECK(of(loss_fault::none) == "");
  CHECK(of(loss_fault::counts_nothing) == "nothing to look at");
  CHECK_THAT(of(loss_fault::reads_padding), Catch::Matchers::Contains("nothing to look at"));
  CHECK(of(loss_fault::wrong_gradient) == "gradients");
  CHECK_THAT(of(loss_fault::sets_gradient), Catch::Matchers::Contains("gradients are added"));
}

TEST_CASE("check_layer: honest layers pass, each broken promise fails by its name", "[train][conformance]") {
  linear_layer<double> linear(6, 6);
  initialize(linear, 2);
  top_k_router<double> router{6, 5, {.top_k = 2}};
  moe_layer mixture{router, expert_bank<ffn<double, silu>>{5, 6, 3, {.bias = true}}, router_z_loss{.coefficient = 0.5}};
  initialize(mixture, 2);
  const auto report = check_layer(sequence{mixture, linear});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.properties.size() == 9);
  for (const property_result& p : report.properties) CHECK(p.result == outcome::passed);

  const auto of = [&](layer_fault wrong) { return failed(check_layer(faulty_layer(linear, wrong))); };
  CHECK(of(layer_fault::none) == "");
  CHECK_THAT(of(layer_fault::fills_padding), Catch::Matchers::Contains("padding"));
  CHECK_THAT(of(layer_fault::adds_the_mean), Catch::Matchers::Contains("NaN tokens"));
  CHECK_THAT(of(layer_fault::counts_calls), Catch::Matchers::Contains("repetition"));
  CHECK(of(layer_fault::wrong_gradient) == "gradients");
  CHECK_THAT(of(layer_fault::spends_tape), Catch::Matchers::Contains("backward calls"));
  CHECK(of(layer_fault::names_twice) == "parameters");
  CHECK_THROWS_AS(check_layer(linear, {.gradient_tokens = 38}), std::invalid_argument);
}
