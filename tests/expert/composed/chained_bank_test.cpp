#include <sluice/expert/composed/chained_bank.hpp>

#include <sluice/expert/activated.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../../support.hpp"

using namespace sluice;

namespace {

auto three_maps() {
  return chained_bank{expert_bank{4, activated_expert<double, elu>{6, 5}},
                      chained_bank{expert_bank{4, activated_expert<double, elu>{5, 7}},
                                   expert_bank{4, linear_expert<double>{7, 3, {.bias = true}}}}};
}

}  // namespace

TEST_CASE("chained_bank: an expert is one bank's behind the other's", "[expert][chained]") {
  auto bank = three_maps();
  std::uint64_t seed = 10;
  for_each_parameter(
      bank, [&](const std::string&, auto& p) { p.assign(test::random_matrix<double>(p.rows(), p.cols(), ++seed)); });
  const matrix<double> x = test::random_matrix<double>(7, 6, 3);
  const std::vector<index_t> offsets{1, 3, 3, 6, 7};  // row 0 is nobody's
  matrix<double> y = matrix<double>::Constant(7, 3, 9.0);
  decltype(bank)::tape tape;
  bank.prepare(tape, 7, false);
  bank.forward(x, offsets, y, tape, {});
  CHECK((y.row(0).array() == 9).all());
  const auto elu_of = [](const matrix<double>& z) {
    return matrix<double>(z.unaryExpr([](double v) { return v < 0 ? std::expm1(v) : v; }));
  };
  for (const index_t e : {0, 2, 3}) {
    const index_t begin = offsets[std::size_t(e)], n = offsets[std::size_t(e) + 1] - begin;
    const auto map = [&](const matrix<double>& in, auto& expert) {
      matrix<double> z = in * expert.weight().to_matrix().transpose();
      z.rowwise() += Eigen::RowVectorXd(expert.bias().to_matrix().transpose());
      return z;
    };
    auto& rest = bank.second();
    const matrix<double> h = elu_of(map(x.middleRows(begin, n), bank.first().expert(e)));
    const matrix<double> expected = map(elu_of(map(h, rest.first().expert(e))), rest.second().expert(e));
    CHECK(test::largest_difference(matrix<double>(y.middleRows(begin, n)), expected) <=
          test::bound<double>(6 + 5 + 7, 64.0));
  }
  std::string names;
  for_each_parameter(
      bank, [&](const std::string& name, const auto&) { names += name.ends_with("2.weight") ? name + ' ' : ""; });
  CHECK(names == "first.2.weight second.first.2.weight second.second.2.weight ");
  index_t of_one = 0;
  auto one = bank.expert(2);
  for_each_parameter(one, [&](const std::string&, const auto& p) { of_one += p.size(); });
  CHECK(of_one * 4 == parameter_count(bank));
  CHECK(bank.copies_of_first(9).experts() == 9);
}

TEST_CASE("chained_bank: keeps every promise in a layer", "[expert][chained][conformance]") {
  moe_layer layer{top_k_router<double>{6, 4, {.top_k = 2}}, three_maps()};
  initialize(layer, 4);
  const auto report = check_layer(layer);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("chained_bank: converts, and refuses banks that do not fit", "[expert][chained]") {
  chained_bank maps{expert_bank<ffn<float>>{3, 4, index_t(6)}, expert_bank<ffn<float, silu>>{3, 4, index_t(5)}};
  initialize(maps, 5);
  const auto small = maps.stored_as<bfloat16_storage>();
  const matrix<float> x = test::random_matrix<float>(5, 4, 6);
  const std::vector<index_t> offsets{0, 2, 4, 5};
  matrix<float> y(5, 4), rounded(5, 4);
  decltype(maps)::tape tape;
  std::remove_cvref_t<decltype(small)>::tape other;
  maps.forward(x, offsets, y, tape, {});
  small.forward(x, offsets, rounded, other, {});
  // Four maps whose weights are rounded to 8 bits.
  CHECK(test::largest_difference(y, rounded) <= 4 * 0x1p-8F * (1 + y.cwiseAbs().maxCoeff()));
  CHECK_FALSE(test::same_bits(y, rounded));
  using bank = expert_bank<ffn<float>>;
  CHECK_THROWS_AS((chained_bank{bank{3, 4, index_t(6)}, bank{2, 4, index_t(6)}}), std::invalid_argument);
  CHECK_THROWS_AS((chained_bank{bank{3, 4, index_t(6)}, bank{3, 5, index_t(6)}}), std::invalid_argument);
}
