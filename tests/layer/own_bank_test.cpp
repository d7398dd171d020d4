#include <sluice/layer/moe_layer.hpp>

#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// Expert e multiplies its rows by e + 1. All that a bank needs, one to be trained included.
struct scaling_bank {
  using scalar = double;
  struct tape {};
  index_t experts() const { return 6; }
  index_t inputs() const { return 4; }
  index_t outputs() const { return 4; }

  void forward(tokens_in<double> x, const expert_rows& rows, tokens_out<double> y, tape&, const executor_ref&) const {
    for (const auto& [expert, begin, end] : rows)
      y.middleRows(begin, end - begin) = static_cast<double>(expert + 1) * x.middleRows(begin, end - begin);
  }
  void backward(tokens_in<double>, const expert_rows& rows, tokens_in<double> dy, tokens_out<double> dx, tape& t,
                const executor_ref& executor) {
    forward(dy, rows, dx, t, executor);
  }
};

}  // namespace

TEST_CASE("moe_layer: a bank of one's own in a few lines", "[layer][bank]") {
  moe_layer layer{top_k_router<double>{4, 6, {.top_k = 2}}, scaling_bank{}};
  initialize(layer, 1);
  const matrix<double> x = test::random_matrix<double>(20, 4, 2);
  matrix<double> y(20, 4), dx(20, 4);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  layer.backward(matrix<double>::Ones(20, 4), dx, tape);
  for (index_t t = 0; t < 20; ++t) {
    double scale = 0;
    for (const index_t i : tape.plan.of_token(t))
      scale += tape.plan.weight(i) * static_cast<double>(tape.plan.expert(i) + 1);
    CHECK(test::largest_difference(matrix<double>(y.row(t)), matrix<double>(scale * x.row(t))) < test::bound<double>(4));
  }
  CHECK(!dx.isZero(0));
}
