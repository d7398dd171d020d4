#include <sluice/train/conformance.hpp>

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/lambda.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "../support.hpp"
#include "plain_router.hpp"

using namespace sluice;
using test::fault;
using test::plain_router;

namespace {

conformance_report report_on(fault wrong) {
  plain_router router(6, 5, wrong);
  initialize(router, 3);
  return check_router(router);
}

outcome result_of(const conformance_report& report, const std::string& name) {
  const property_result* property = report.find(name);
  REQUIRE(property != nullptr);
  return property->result;
}

}  // namespace

TEST_CASE("check_router: an honest router of a user's own passes everything", "[train][conformance]") {
  const auto report = report_on(fault::none);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.properties.size() == 20);
  for (const property_result& p : report.properties) {
    CHECK(p.result == outcome::passed);
    CHECK_FALSE(p.detail.empty());
  }
}

TEST_CASE("check_router: each broken promise fails at the property that names it", "[train][conformance]") {
  struct broken {
    fault wrong;
    const char* property;
  };
  const auto b = GENERATE(
      broken{fault::refuses_zero_tokens, "zero tokens"}, broken{fault::forgets_a_token, "valid plans"},
      broken{fault::sends_out_of_range, "valid plans"}, broken{fault::sends_twice, "valid plans"},
      broken{fault::breaks_ties_by_place, "equal tokens"}, broken{fault::weighs_by_place, "token permutation"},
      broken{fault::skips_nan, "NaN token"}, broken{fault::spreads_nan, "NaN token"},
      broken{fault::spreads_nan, "infinite token"}, broken{fault::lists_kept_as_dropped, "conservation"},
      broken{fault::drops_into_free_slot, "conservation"}, broken{fault::remembers_calls, "repetition"},
      broken{fault::orders_by_arrival, "thread counts"}, broken{fault::knows_its_thread, "shared by threads"},
      broken{fault::draws_in_inference, "inference draws nothing"},
      broken{fault::learns_in_forward, "calls change no parameter"}, broken{fault::routes_padding, "padding"},
      broken{fault::reads_padding, "padding"}, broken{fault::wrong_gradient, "gradients in training"},
      broken{fault::wrong_gradient, "gradients without training"},
      broken{fault::forgets_signals, "gradients in training"}, broken{fault::forgets_dx, "gradients in training"},
      broken{fault::overwrites_gradients, "gradients are added"},
      broken{fault::lets_nan_into_gradients, "NaN in gradients"}, broken{fault::spends_tape, "backward again"},
      broken{fault::steps_to_nan, "after_step"});
  const auto report = report_on(b.wrong);
  INFO(report.describe());
  CAPTURE(b.property);
  CHECK_FALSE(report.passed());
  CHECK(result_of(report, b.property) == outcome::failed);
}

TEST_CASE("check_router: top-k routers in float and double", "[train][conformance]") {
  const auto weights = GENERATE(weighting::pre, weighting::post, weighting::renorm);
  top_k_router<double> in_double{6, 5, {.top_k = 2, .weights = weights}};
  initialize(in_double, 3);
  const auto report = check_router(in_double, {.seed = 4});
  INFO(report.describe());
  CHECK(report.passed());
  top_k_router<float> in_float{6, 5, {.top_k = 2, .weights = weights}};
  initialize(in_float, 3);
  const auto float_report = check_router(in_float, {.seed = 4});
  INFO(float_report.describe());
  CHECK(float_report.passed());
  CHECK(result_of(float_report, "gradients in training") == outcome::skipped);
}

TEST_CASE("check_router: the bias is all of padding's logits, and no loss sees it", "[train][conformance]") {
  top_k_router<double> router{linear_gate<double>(6, 5, {.bias = true}), {.top_k = 2}};
  initialize(router, 3);
  std::vector<std::uint8_t> mask(67, 1);
  mask[2] = mask[5] = 0;
  router_check_options<double> options{.seed = 4};
  options.context.token_mask = mask;
  const auto report = check_router(router, options);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("check_router: what the router needs besides x travels with its tokens", "[train][conformance]") {
  // A table of experts by token id: needs token_ids, learns nothing.
  struct by_id {
    using scalar = float;
    using plan = sparse_plan<float>;
    struct tape {};
    index_t inputs() const { return 3; }
    index_t experts() const { return 4; }
    void route(tokens_in<float> x, const routing_context<float>& context, plan& p, tape&) const {
      if (context.token_ids.empty() && x.rows() > 0) throw_invalid("by_id needs routing_context.token_ids");
      p.reset(x.rows(), experts());
      for (index_t t = 0; t < x.rows(); ++t)
        if (!context.is_padding(t)) p.add(t, context.token_ids[static_cast<std::size_t>(t)] % 4, 1);
      p.finish();
    }
  };
  std::vector<index_t> ids(20);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<index_t>(i * i % 13);
  router_check_options<float> options;
  options.tokens = 20;
  options.context.token_ids = ids;
  const auto report = check_router(by_id{}, options);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(result_of(report, "token permutation") == outcome::passed);
  CHECK(result_of(report, "gradients are added") == outcome::skipped);
  CHECK(result_of(report, "after_step") == outcome::skipped);

  options.context.token_ids = {};
  const auto without = check_router(by_id{}, options);
  CHECK_FALSE(without.passed());
  CHECK(without.find("valid plans")->detail == "threw: sluice: by_id needs routing_context.token_ids");
}

TEST_CASE("check_router: options that do not fit are refused", "[train][conformance]") {
  const plain_router router(6, 5);
  CHECK_THROWS_AS(check_router(router, {.tokens = 3}), std::invalid_argument);
  CHECK_THROWS_AS(check_router(router, {.gradient_tokens = 68}), std::invalid_argument);
  const std::vector<index_t> ids(5);
  router_check_options<double> options;
  options.context.token_ids = ids;
  CHECK_THROWS_AS(check_router(router, options), std::invalid_argument);
}

namespace {

enum class expert_fault {
  none,
  mixes_rows,
  writes_beside,
  counts_calls,
  changes_weight,
  wrong_dx,
  wrong_gradient,
  adds_dx,
  overwrites_gradient,
  spends_saved,
  refuses_zero_rows
};

/// y = x * s, s [D].
class scale_expert {
public:
  using scalar = double;
  explicit scale_expert(index_t width, expert_fault wrong = expert_fault::none)
      : wrong_(wrong), scale_({width}, parameter_role::vector, initial_values::normal(1)) {}
  index_t inputs() const { return scale_.size(); }
  index_t outputs() const { return scale_.size(); }
  index_t saved_columns() const { return 1; }

  void forward(tokens_in<double> x, tokens_out<double> y, tokens_out<double> saved) const {
    if (has(expert_fault::refuses_zero_rows) && x.rows() == 0) throw_invalid("no rows");
    y = (x.array().rowwise() * scale_.map().col(0).transpose().array()).matrix();
    saved.setZero();
    if (has(expert_fault::mixes_rows)) y.array() += 1e-3 * x.sum();
    if (has(expert_fault::writes_beside) && x.rows() > 0) saved.data()[saved.outerStride() - 1] = 1;
    if (has(expert_fault::counts_calls)) y.array() += 1e-3 * calls_++;
    if (has(expert_fault::changes_weight)) scale_.data()[0] += 1;
  }
  void backward(tokens_in<double> x, tokens_in<double> dy, tokens_out<double> saved, tokens_out<double> dx) {
    const matrix<double> gradient = (dy.array().rowwise() * scale_.map().col(0).transpose().array()).matrix();
    if (has(expert_fault::adds_dx))
      dx += gradient;
    else
      dx = has(expert_fault::wrong_dx) ? matrix<double>(gradient * 1.01) : gradient;
    if (has(expert_fault::spends_saved)) {
      dx.array() += saved.sum();
      saved.setOnes();
    }
    if (has(expert_fault::overwrites_gradient)) scale_.zero_gradient();
    for (index_t d = 0; d < inputs(); ++d)
      scale_.gradient()[static_cast<std::size_t>(d)] +=
          x.col(d).dot(dy.col(d)) * (has(expert_fault::wrong_gradient) ? 2 : 1);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("scale", self.scale_);
  }

private:
  bool has(expert_fault f) const { return wrong_ == f; }
  expert_fault wrong_;
  mutable parameter<double> scale_;
  mutable int calls_ = 0;
};

}  // namespace

TEST_CASE("check_expert: an honest expert passes everything", "[train][conformance]") {
  scale_expert expert(9);
  initialize(expert, 1);
  const auto report = check_expert(expert);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.properties.size() == 10);
  for (const property_result& p : report.properties) CHECK(p.result == outcome::passed);
}

TEST_CASE("check_expert: each broken promise fails at the property that names it", "[train][conformance]") {
  struct broken {
    expert_fault wrong;
    const char* property;
  };
  const auto b = GENERATE(
      broken{expert_fault::refuses_zero_rows, "zero rows"}, broken{expert_fault::mixes_rows, "rows on their own"},
      broken{expert_fault::mixes_rows, "NaN row"}, broken{expert_fault::writes_beside, "borders"},
      broken{expert_fault::counts_calls, "repetition"},
      broken{expert_fault::changes_weight, "calls change no parameter"}, broken{expert_fault::wrong_dx, "gradients"},
      broken{expert_fault::wrong_gradient, "gradients"}, broken{expert_fault::adds_dx, "outputs are overwritten"},
      broken{expert_fault::overwrites_gradient, "gradients are added"},
      broken{expert_fault::spends_saved, "backward again"});
  scale_expert expert(9, b.wrong);
  initialize(expert, 1);
  const auto report = check_expert(expert);
  INFO(report.describe());
  CAPTURE(b.property);
  CHECK_FALSE(report.passed());
  CHECK(result_of(report, b.property) == outcome::failed);
}

TEMPLATE_TEST_CASE("check_expert: the library's experts pass", "[train][conformance]", float, double) {
  const auto passes = [](auto expert) {
    initialize(expert, 5);
    const auto report = check_expert(expert);
    INFO(report.describe());
    CHECK(report.passed());
  };
  passes(ffn<TestType, gelu>(7, 11, {.outputs = 5, .bias = true}));
  passes(gated_ffn<TestType, silu>(7, 11, {.outputs = 5, .bias = true, .hidden_scale = true}));
  passes(identity_expert<TestType>(7));
  passes(zero_expert<TestType>(7));
  passes(make_expert<TestType>(
      7, 7, [](auto x, auto y) { y = 2 * x; }, [](auto, auto dy, auto dx) { dx = 2 * dy; }));
}

TEST_CASE("check_expert: an expert without backward is checked forwards", "[train][conformance]") {
  const auto report = check_expert(make_expert<double>(4, 3, [](auto x, auto y) { y = x.leftCols(3); }));
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(result_of(report, "gradients") == outcome::skipped);
  CHECK(result_of(report, "gradients are added") == outcome::skipped);
  CHECK(result_of(report, "rows on their own") == outcome::passed);
}
