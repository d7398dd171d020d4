#include <sluice/attention/encoder_fusion.hpp>

#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <array>
#include <memory>

using namespace sluice;

namespace {

constexpr index_t fused_width = 6, text_width = 4, tokens = 9;
const index_t widths[] = {3, 5, 2};

/// Three images, the last of which is offered nothing, and rows of three encoders for each: 1, 4 and 2 of the first.
struct fusion_batch {
  matrix<double> x = test::random_matrix<double>(tokens, fused_width, 1),
                 text = test::random_matrix<double>(3, text_width, 2);
  std::vector<index_t> images{0, 4, 7, 9};
  matrix<index_t> offers{tokens, 3};
  std::vector<matrix<double>> states, gradients;
  std::vector<std::vector<index_t>> rows{{0, 1, 5, 7}, {0, 3, 6, 9}, {0, 4, 4, 6}};
  std::vector<encoder_states<double>> encoders;

  fusion_batch() {
    for (std::size_t e = 0; e < 3; ++e) {
      states.push_back(test::random_matrix<double>(rows[e].back(), widths[e], 5 + e));
      gradients.push_back(matrix<double>::Zero(rows[e].back(), widths[e]));
    }
    for (std::size_t e = 0; e < 3; ++e)
      encoders.push_back({.rows = states[e], .sequences = rows[e], .gradient = test::span_of(gradients[e])});
    offer(0, {0, 1, 2}), offer(1, {2, 0, no_expert}), offer(2, {no_expert, no_expert, no_expert});
  }
  void offer(std::size_t image, std::array<index_t, 3> to) {
    for (index_t t = images[image]; t < images[image + 1]; ++t) offers.row(t) << to[0], to[1], to[2];
  }
  routing_context<double> context(bool training) const {
    return {.training = training, .groups = images, .expert_ids = offers, .group_features = text, .encoders = encoders};
  }
};

auto initialized_block(index_t top_k) {
  auto block = encoder_fusion<double>(fused_width, widths, {.text = text_width, .heads = 2, .top_k = top_k});
  initialize(block, 3);
  return block;
}
/// After some steps of training, so to speak.
auto trained_block(index_t top_k) {
  auto block = initialized_block(top_k);
  std::uint64_t seed = 20;
  for_each_parameter(block, [&](const std::string& name, auto& p) {
    if (!name.ends_with("gain")) p.assign(0.4 * test::random_matrix<double>(p.rows(), p.cols(), ++seed));
  });
  return block;
}

}  // namespace

TEST_CASE("encoder_fusion: at first the block is the identity and all that is offered weighs the same", "[attention]") {
  const fusion_batch b;
  const auto block = initialized_block(3);
  matrix<double> y(tokens, fused_width);
  mova_block<double>::tape tape;
  block.forward(b.x, y, tape, b.context(true));
  CHECK(test::same_bits(y, b.x));
  const auto& plan = std::get<0>(tape.layers).layer.plan;
  for (index_t t = 0; t < tokens; ++t) {
    CHECK(plan.of_token(t).size() == (t < 4 ? 3 : t < 7 ? 2 : 0));
    for (const index_t i : plan.of_token(t)) CHECK(plan.weight(i) == Approx(1.0 / (t < 4 ? 3 : 2)).epsilon(1e-14));
  }
}

TEST_CASE("encoder_fusion: a weighted sum of cross attentions, attention and SwiGLU", "[attention]") {
  const fusion_batch b;
  auto block = trained_block(2);
  matrix<double> y(tokens, fused_width), expected = b.x, own(tokens, fused_width);
  decltype(block)::tape tape;
  const auto context = b.context(true);
  block.forward(b.x, y, tape, context);
  // The gate by hand: the two best of what is offered.
  auto& mixture = block.layer<0>().layer();
  ffn<double, gelu>& gate = mixture.router().gate().inner().network();
  matrix<double> weights = matrix<double>::Zero(3, 3);
  for (std::size_t g = 0; g < 2; ++g) {
    Eigen::VectorXd v(text_width + fused_width);
    v << b.text.row(index_t(g)).transpose(),
        b.x.middleRows(b.images[g], b.images[g + 1] - b.images[g]).colwise().mean().transpose();
    Eigen::VectorXd h = gate.up().to_matrix() * v + gate.up_bias().to_matrix().col(0);
    for (double& u : h) u *= 0.5 * (1 + std::erf(u / std::sqrt(2.0)));
    const Eigen::VectorXd l = gate.down().to_matrix() * h + gate.down_bias().to_matrix().col(0);
    index_t best[] = {0, 1, 2};
    std::sort(best, best + 3,
              [&](index_t a, index_t c) { return (g == 1 && a == 1) ? false : (g == 1 && c == 1) || l[a] > l[c]; });
    for (const index_t e : {best[0], best[1]})
      weights(index_t(g), e) = std::exp(l[e]) / (std::exp(l[best[0]]) + std::exp(l[best[1]]));
  }
  for (index_t e = 0; e < 3; ++e) {
    const auto& look = mixture.bank().network(e);
    std::remove_cvref_t<decltype(look)>::workspace ws;
    look.forward(b.x, own, ws, context);
    for (std::size_t g = 0; g < 3; ++g)
      for (index_t t = b.images[g]; t < b.images[g + 1]; ++t) expected.row(t) += weights(index_t(g), e) * own.row(t);
  }
  decltype(block)::workspace ws;
  const sequence rest{block.layer<1>(), block.layer<2>()};
  decltype(rest)::workspace memory;
  rest.forward(matrix<double>(expected), expected, memory, context);
  CHECK(test::largest_difference(y, expected) < test::bound<double>(60, 20));
}

TEST_CASE("encoder_fusion: an encoder that is not chosen has no gradient", "[attention]") {
  fusion_batch b;
  b.offer(0, {2, 0, no_expert});  // nobody is offered encoder 1
  auto block = trained_block(3);
  matrix<double> y(tokens, fused_width), dx(tokens, fused_width);
  decltype(block)::tape tape;
  block.forward(b.x, y, tape, b.context(true));
  zero_gradients(block);
  block.backward(test::random_matrix<double>(tokens, fused_width, 9), dx, tape);
  CHECK((b.gradients[1].isZero(0) && !b.gradients[0].isZero(0) && !b.gradients[2].isZero(0)));
  CHECK((b.gradients[0].bottomRows(2).isZero(0) && !b.gradients[0].topRows(1).isZero(0)));  // the third image's
  const auto still = [](auto& layer) {
    bool all = true;
    for_each_parameter(layer, [&](const std::string&, auto& p) { all &= p.gradient_matrix().isZero(0); });
    return all;
  };
  auto& mixture = block.layer<0>().layer();
  CHECK((still(mixture.bank().network(1)) && !still(mixture.bank().network(0)) && !still(mixture.bank().network(2))));
  const matrix<double> dlast = mixture.router().gate().inner().network().down().gradient_matrix();
  CHECK((dlast.row(1).isZero(0) && !dlast.row(0).isZero(0)));
}

TEST_CASE("encoder_fusion: gradients of parameters, tokens, texts and encoders", "[attention][gradient]") {
  fusion_batch b;
  auto block = trained_block(2);
  const matrix<double> dy = test::random_matrix<double>(tokens, fused_width, 9);
  matrix<double> y(tokens, fused_width), dx(tokens, fused_width);
  auto first = std::make_unique<decltype(block)::tape>();
  block.forward(b.x, y, *first, b.context(true));
  decltype(block)::tape tape = *first, own;
  first.reset();  // what a tape knows of sequences is its own
  block.backward(dy, dx, tape);
  const auto& mixture = std::get<0>(tape.layers).layer;
  for (const auto& [e, begin, end] : mixture.plan.by_expert())
    CHECK(mixture.experts.networks[as_size(e)].context.sequences.data() ==
          mixture.experts.own[as_size(e)].sequences.data());
  const matrix<double> dtext =
      text_and_image_gate<double>::text_gradient(std::get<0>(tape.layers).layer.router.gate.inner).map();
  const std::vector<matrix<double>> d = b.gradients;
  const auto report = check_gradients(block,
                                      {{"x", test::span_of(b.x), test::span_of(std::as_const(dx))},
                                       {"text", test::span_of(b.text), test::span_of(dtext)},
                                       {"first", test::span_of(b.states[0]), test::span_of(d[0])},
                                       {"second", test::span_of(b.states[1]), test::span_of(d[1])},
                                       {"third", test::span_of(b.states[2]), test::span_of(d[2])}},
                                      [&] {
                                        block.forward(b.x, y, own, b.context(true));
                                        return (y.array() * dy.array()).sum();
                                      });
  INFO(report.describe());
  CHECK(report.checked > 800);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("encoder_fusion: keeps the promises of layers", "[attention][conformance]") {
  fusion_batch b;
  for (auto& one : b.encoders) one.gradient = {};
  layer_check_options<double> options{.seed = 5, .tokens = tokens, .gradient_tokens = 3};
  options.context = b.context(true);
  const auto report = check_layer(trained_block(2), options);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK_THROWS_AS(encoder_fusion<double>(fused_width, widths, {.top_k = 4}), std::invalid_argument);
  CHECK_THROWS_AS(encoder_fusion<double>(fused_width, std::span<const index_t>(), {.top_k = 2}), std::invalid_argument);
}
