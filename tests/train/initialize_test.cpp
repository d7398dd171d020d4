#include <sluice/train/initialize.hpp>

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/kernel/format/formats.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

struct several_arrays {
  parameter<double> normal{{100, 100}, parameter_role::weight, initial_values::normal(0.5)};
  parameter<double> uniform{{100, 100}, parameter_role::weight, initial_values::uniform(0.25)};
  parameter<double> constant{{10}, parameter_role::vector, initial_values::constant(7)};
  parameter<double> state{{10}, parameter_role::state, initial_values::constant(3)};
  parameter<double> computed{
      {50, 3}, parameter_role::weight, initial_values::computed([](index_t column, double draw) {
        return static_cast<double>(column) + draw;
      })};
  std::string first_name = "normal";

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit(self.first_name, self.normal);
    visit("uniform", self.uniform);
    visit("constant", self.constant);
    visit("state", self.state);
    visit("computed", self.computed);
  }
};

struct moments {
  double mean = 0, deviation = 0, smallest = 0, largest = 0;
};
moments moments_of(const parameter<double>& p) {
  moments m;
  const auto v = p.map();
  m.mean = v.mean();
  m.deviation = std::sqrt((v.array() - m.mean).square().mean());
  m.smallest = v.minCoeff();
  m.largest = v.maxCoeff();
  return m;
}

}  // namespace

TEST_CASE("initialize: every array gets its distribution, states keep their values", "[train][initialize]") {
  several_arrays model;
  model.constant.data()[3] = 1;
  model.state.data()[3] = 1;
  initialize(model, 1);
  // 10^4 draws: the mean is good to 5 deviations / 100, the deviation to 5 / sqrt(2 * 10^4) of itself.
  const moments n = moments_of(model.normal);
  CHECK(std::abs(n.mean) < 5 * 0.5 / 100);
  CHECK(std::abs(n.deviation / 0.5 - 1) < 5 / std::sqrt(2e4));
  CHECK(n.largest > 3 * 0.5);
  const moments u = moments_of(model.uniform);
  CHECK(std::abs(u.mean) < 5 * 0.25 / std::sqrt(3) / 100);
  CHECK(std::abs(u.deviation / (0.25 / std::sqrt(3)) - 1) < 5 / std::sqrt(2e4));
  CHECK(u.smallest >= -0.25);
  CHECK(u.largest <= 0.25);
  CHECK(u.largest > 0.249);
  for (index_t i = 0; i < model.computed.size(); ++i) {
    CHECK(std::floor(model.computed.data()[i]) == static_cast<double>(i % 3));
    if (i > 0) CHECK(model.computed.data()[i] != model.computed.data()[i - 1] + (i % 3 == 0 ? -2 : 1));  // its own draw
  }
  CHECK(model.constant.data()[3] == 7);
  CHECK(model.state.data()[3] == 1);
}

TEST_CASE("initialize: equal seeds, equal bits, other seeds and other names, other streams", "[train][initialize]") {
  several_arrays a, b, c, d;
  initialize(a, 1);
  initialize(b, 1);
  initialize(c, 2);
  d.first_name = "renamed";
  initialize(d, 1);
  CHECK(test::same_bits(a.normal.map(), b.normal.map()));
  CHECK(test::same_bits(a.uniform.map(), b.uniform.map()));
  CHECK_FALSE(test::same_bits(a.normal.map(), c.normal.map()));
  CHECK_FALSE(test::same_bits(a.normal.map(), d.normal.map()));
  CHECK(test::same_bits(a.uniform.map(), d.uniform.map()));
  // Two arrays of one model are not the same draws scaled.
  CHECK(std::abs((a.normal.map().array() / 0.5 * a.uniform.map().array() / 0.25).mean()) < 5 / 100.0);
}

TEST_CASE("initialize: equal bits for any thread count, however arrays are kept", "[train][initialize][determinism]") {
  const auto check = [](const auto& fresh) {
    auto alone = fresh;
    initialize(alone, 1);
    for (const int count : {2, 3}) {
      auto threaded = fresh;
      test::shuffled_threads threads(count);
      initialize(threaded, 1, threads);
      std::vector<matrix<float>> expected;
      for_each_parameter(alone, [&](const std::string&, const auto& p) { expected.push_back(p.to_matrix()); });
      std::size_t next = 0;
      for_each_parameter(threaded, [&](const std::string& name, const auto& p) {
        CAPTURE(name, count);
        CHECK(test::same_bits(p.to_matrix(), expected[next++]));
      });
    }
  };
  check(swiglu<float>(70, 90, {.bias = true}));
  check(swiglu<float, coded_storage<q8_0_format>>(64, 96));
}

TEST_CASE("equalize_rows: rows of one length, and the deviation of before", "[train][initialize]") {
  several_arrays model;
  initialize(model, 1);
  model.normal.map().row(3) *= 40;
  const double before = moments_of(model.normal).deviation;
  equalize_rows(model.normal);
  const matrix<double> w = model.normal.to_matrix();
  CHECK(moments_of(model.normal).deviation == Approx(before).epsilon(1e-12));
  for (index_t r = 0; r < w.rows(); ++r) CHECK(w.row(r).norm() == Approx(w.row(0).norm()).epsilon(1e-12));
  parameter<float> zeros({2, 3}, parameter_role::weight);
  equalize_rows(zeros);
  CHECK(zeros.map().isZero(0));
}
