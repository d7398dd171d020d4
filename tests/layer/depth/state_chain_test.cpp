#include <sluice/layer/depth/state_chain.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/depth/momentum.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/layer/split/columns.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "layer/layer_promises.hpp"

#include <cmath>

using namespace sluice;

namespace {

/// u = factor x + constant
struct line {
  using scalar = double;
  double factor, constant;
  index_t inputs() const { return 1; }
  index_t outputs() const { return 1; }
  index_t saved_columns() const { return 0; }
  void forward(tokens_in<double> x, tokens_out<double> y, tokens_out<double>) const {
    y = (factor * x).array() + constant;
  }
  void backward(tokens_in<double>, tokens_in<double> dy, tokens_out<double>, tokens_out<double> dx) const {
    dx = factor * dy;
  }
};

template <typename Step>
auto link_of(line u, Step step, index_t blocks = Step::states) {
  return linked_layer{dense_layer{u}, step, blocks};
}

/// What a chain makes of the number 1.
template <typename Layer>
double of_one(const state_chain<Layer>& chain) {
  matrix<double> x = matrix<double>::Ones(1, 1), y(1, 1);
  typename state_chain<Layer>::workspace workspace;
  chain.forward(x, y, workspace);
  return y(0, 0);
}

const index_t chain_width = 4;

auto small_mixture() {
  return moe_layer{top_k_router<double>{chain_width, 3, {.top_k = 2}}, expert_bank<swiglu<double>>{3, chain_width, 5}};
}
auto passing(index_t columns) { return dense_layer{identity_expert<double>{columns}}; }

}  // namespace

TEST_CASE("state_chain: momentum lasts from layer to layer", "[layer][depth]") {
  const momentum_step<double> step{.decay = 0.7, .rate = 1};
  const auto link = [&] { return link_of({-0.5, 0}, step); };
  CHECK(of_one(state_chain{sequence{link()}, 1}) == Approx(1.5).epsilon(1e-14));
  CHECK(of_one(state_chain{sequence{link(), link()}, 1}) == Approx(2.6).epsilon(1e-14));
  const state_chain chain{sequence{link(), link(), link()}, 1};
  CHECK(of_one(chain) == Approx(4.67).epsilon(1e-14));
  decltype(chain)::tape tape;
  matrix<double> x = matrix<double>::Ones(1, 1), y(1, 1);
  chain.forward(x, y, tape);
  CHECK(chain.state(tape)(0, 0) == Approx(2.6 - 4.67).epsilon(1e-14));  // m = x - x'
}

TEST_CASE("state_chain: without memory it is the residual stack, with the rate of its sign", "[layer][depth]") {
  const auto block = [] { return normalized_layer{small_mixture(), rms_norm<double>{chain_width}}; };
  linked_layer first{block(), momentum_step<double>{.decay = 0, .rate = -1}};
  linked_layer second = first;
  state_chain chain{sequence{first, second}, chain_width};
  initialize(chain, 3);
  const sequence plain{residual_layer{chain.layer().layer<0>().layer()},
                       residual_layer{chain.layer().layer<1>().layer()}};
  const matrix<double> x = test::random_matrix<double>(9, chain_width, 4);
  matrix<double> y(9, chain_width), wanted(9, chain_width);
  decltype(chain)::workspace workspace;
  std::remove_cv_t<decltype(plain)>::workspace other;
  chain.forward(x, y, workspace);
  plain.forward(x, wanted, other);
  CHECK(test::same_bits(y, wanted));
}

TEST_CASE("state_chain: Adam's first step is about sqrt(10), whatever the output", "[layer][depth]") {
  const adam_step<double> adam{};
  CHECK(of_one(state_chain{sequence{link_of({0, 0.5}, adam)}, 1}) == Approx(-3.162214).margin(5e-7));
  // Momentum goes on behind it: m = 0.7 * 0.5 + 0.5.
  const state_chain both{sequence{link_of({0, 0.5}, adam), link_of({0, 0.5}, momentum_step<double>{}, 3)}, 1};
  CHECK(of_one(both) == Approx(-3.162214 - 0.85).margin(5e-7));
  CHECK(of_one(state_chain{sequence{link_of({0, 0.5}, adam_step<double>{.decay = 0})}, 1}) ==
        Approx(1 - 3.162214).margin(5e-7));
}

TEST_CASE("momentum: the robust form has the published numbers and looks ahead", "[layer][depth]") {
  const auto mild = robust_momentum(10.0, 1.0, 0.5);
  CHECK(mild.rate == Approx(3.75));
  CHECK(mild.decay == Approx(0.1389).margin(5e-5));
  CHECK(mild.look_ahead == Approx(0.0370).margin(5e-5));
  const auto slow = robust_momentum(10.0, 1.0, 0.9);
  CHECK(slow.rate == Approx(0.19));
  CHECK(slow.decay == Approx(0.81));
  CHECK(slow.look_ahead == Approx(4.263).margin(5e-4));
  CHECK_THROWS_WITH(robust_momentum(1.0, 1.0, 0.9), Catch::Matchers::Contains("rho < 1, not 1"));
  double x = 1, before = 1;
  for (int layer = 0; layer < 3; ++layer) {
    const double y = x + slow.look_ahead * (x - before);
    const double next = x + slow.decay * (x - before) - slow.rate * 0.5 * y;
    before = x;
    x = next;
  }
  const auto link = [&] { return link_of({0.5, 0}, slow); };
  CHECK(of_one(state_chain{sequence{link(), link(), link()}, 1}) == Approx(x).epsilon(1e-13));
}

TEST_CASE("columns: two streams that know nothing of each other, begun alike", "[layer][depth][split]") {
  // h doubles twice, p four times in one step: a stream that runs ahead.
  const auto advance = [] { return column_layers{dense_layer{line{2, 0}}, dense_layer{line{4, 0}}}; };
  const state_chain chain{sequence{advance(), advance()}, 1, first_state::x};
  decltype(chain)::tape tape;
  matrix<double> x = matrix<double>::Constant(1, 1, 3), y(1, 1);
  chain.forward(x, y, tape);
  CHECK(y(0, 0) == 12);
  CHECK(chain.state(tape)(0, 0) == 48);
}

TEST_CASE("state_chain: shapes that do not fit are refused", "[layer][depth]") {
  const momentum_step<double> step{};
  CHECK_THROWS_WITH((link_of({1, 0}, adam_step<double>{}, 2)),
                    Catch::Matchers::Contains("needs 3 states, the chain has 2"));
  CHECK_THROWS_WITH(
      (link_of({1, 0}, momentum_step<double>{.decay = quiet_nan<double>()})),
      Catch::Matchers::Contains("momentum_step needs a finite decay, rate and look_ahead, not nan, 1 and 0"));
  CHECK_THROWS_WITH((link_of({1, 0}, adam_step<double>{.second = 1})), Catch::Matchers::Contains("not 0.9, 1, 1, 1"));
  CHECK_THROWS_WITH((link_of({1, 0}, adam_step<double>{.epsilon = 0})), Catch::Matchers::Contains("1 and 0"));
  CHECK_THROWS_AS((link_of({1, 0}, adam_step<double>{.momentum = {.rate = quiet_nan<double>()}})),
                  std::invalid_argument);
  CHECK_THROWS_AS(robust_momentum(std::numeric_limits<double>::infinity(), 1.0, 0.5), std::invalid_argument);
  CHECK_THROWS_WITH((state_chain{link_of({1, 0}, step), 3}), Catch::Matchers::Contains("width 3"));
  CHECK_THROWS_WITH((state_chain{passing(5), 2, first_state::x}),
                    Catch::Matchers::Contains("multiple of its width 2, not 3"));
  CHECK_THROWS_WITH((residual_layer{passing(5), 6}), Catch::Matchers::Contains("of 5 columns 6"));
  linked_layer link{small_mixture(), step};
  CHECK(link.inputs() == 8);
  CHECK(link.workspace_bytes(9) > link.layer().workspace_bytes(9));
  initialize(link, 1);
  CHECK((state_chain{link, chain_width}).stored_as<bfloat16_storage>().experts() == 3);
}

TEST_CASE("state_chain, linked, columns: every promise of a layer", "[layer][depth][conformance]") {
  const momentum_step<double> step{.decay = 0.7, .rate = 0.9, .look_ahead = 0.3};
  const auto norm = [] { return rms_norm<double>{chain_width}; };
  const auto between = [&](index_t state) {
    return column_layers{residual_layer{normalized_layer{dense_layer{ffn<double, gelu>{chain_width, 3}}, norm()}},
                         passing(state)};
  };
  const linked_layer momentum{normalized_layer{small_mixture(), norm()}, step};
  // A link inside a residual of its own, as in the transformer of the released code.
  test::check_layer_promises(
      state_chain{sequence{residual_layer{momentum, chain_width}, between(chain_width), momentum}, chain_width}, 11);
  // v is a mean of squares: a chain that begins it with zero is right, one that begins it anywhere is not.
  const linked_layer adam{normalized_layer{small_mixture(), norm()}, adam_step<double>{.decay = 0.25, .epsilon = 1e-2}};
  const linked_layer goes_on{normalized_layer{small_mixture(), norm()}, step, 3};
  test::check_layer_promises(state_chain{sequence{adam, goes_on}, chain_width}, 12);
  test::check_layer_promises(momentum, 13);
  test::check_layer_promises(state_chain{between(chain_width), chain_width, first_state::x}, 14);
}
