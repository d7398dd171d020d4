#include <sluice/layer/token_mixer.hpp>

#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// y_t = w * (x_0 + .. + x_t), channel by channel, in every sequence on its own.
class running_sum : public token_mixer<running_sum, double> {
  using base = token_mixer<running_sum, double>;
  friend base;

public:
  static constexpr bool causal = true;

  explicit running_sum(index_t width) : weight_({1, width}, parameter_role::weight, initial_values::normal(1)) {}

  index_t inputs() const noexcept { return weight_.cols(); }
  index_t workspace_bytes(index_t rows, bool = false) const { return rows * inputs() * 8; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
  }

private:
  template <typename Memory>
  void mix(tokens_in<double> x, tokens_out<double> y, Memory&, const context_type& context) const {
    for (index_t s = 0; s < context.sequence_count(); ++s) {
      Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(inputs());
      const token_range range = context.sequence(s, x.rows());
      for (index_t t = range.begin; t < range.end; ++t) {
        sum += x.row(t);
        y.row(t) = sum.cwiseProduct(weight_.map());
      }
    }
  }
  void mix_backward(tokens_in<double> dy, tokens_out<double> dx, tape& t) {
    for (index_t s = 0; s < t.context.sequence_count(); ++s) {
      Eigen::RowVectorXd after = Eigen::RowVectorXd::Zero(inputs());  // sum of dy from here on
      const token_range range = t.context.sequence(s, dy.rows());
      for (index_t i = range.end - 1; i >= range.begin; --i) {
        after += dy.row(i);
        dx.row(i) = after.cwiseProduct(weight_.map());
        weight_.gradient_map() += after.cwiseProduct(t.kept.x().row(i));
      }
    }
  }

  parameter<double> weight_;
};

static_assert(TrainableLayer<running_sum>);

}  // namespace

TEST_CASE("token_mixer: a layer of a few lines keeps every promise of a layer", "[layer][token_mixer][conformance]") {
  running_sum sum(5);
  initialize(sum, 1);
  const auto report = check_layer(sum, {.seed = 5});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == outcome::passed);
}

TEST_CASE("token_mixer: hidden tokens add nothing, and get zero or NaN", "[layer][token_mixer]") {
  running_sum sum(1);
  for_each_parameter(sum, [](const auto&, auto& p) { p.fill([](index_t) { return 2.0; }); });
  matrix<double> x(5, 1), y(5, 1), dx(5, 1);
  x << 1, 7, quiet_nan<double>(), 3, 5;
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 1};
  const std::vector<index_t> borders{0, 4, 5};
  running_sum::tape tape;
  sum.forward(x, y, tape, {.training = true, .token_mask = mask, .sequences = borders});
  CHECK(is_nan(y(2, 0)));
  y(2, 0) = -1;
  CHECK(y == (matrix<double>(5, 1) << 2, 0, -1, 8, 10).finished());
  sum.backward(matrix<double>::Ones(5, 1), dx, tape);
  CHECK(dx == (matrix<double>(5, 1) << 4, 0, 0, 2, 2).finished());
}

TEST_CASE("token_mixer: what nobody has set, other shapes and a backward without a forward throw",
          "[layer][token_mixer]") {
  running_sum sum(2);
  matrix<double> x = test::random_matrix<double>(3, 2, 1), y(3, 2), narrow(3, 1);
  running_sum::workspace ws;
  running_sum::tape tape;
  CHECK_THROWS_AS(sum.forward(x, y, ws), std::invalid_argument);
  initialize(sum, 1);
  CHECK_THROWS_AS(sum.forward(x, narrow, ws), std::invalid_argument);
  CHECK_THROWS_AS(sum.backward(x, y, tape), std::invalid_argument);
  matrix<double> in_place = x;
  sum.forward(x, y, ws);
  sum.forward(in_place, in_place, ws);
  CHECK(in_place == y);
}
