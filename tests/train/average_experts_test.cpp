#include <sluice/train/average_experts.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/train/initialize.hpp>

#include "io/messages.hpp"
#include "support.hpp"

using namespace sluice;

namespace {

expert_bank<linear_expert<double>> experts_that_multiply(const std::vector<double>& factors) {
  expert_bank<linear_expert<double>> bank(static_cast<index_t>(factors.size()), index_t{1}, index_t{1});
  for (index_t e = 0; e < bank.experts(); ++e)
    bank.expert(e).weight().assign(matrix<double>::Constant(1, 1, factors[static_cast<std::size_t>(e)]));
  return bank;
}

double factor_of(const linear_expert<double>& expert) {
  double factor = 0;
  for_each_parameter(expert, [&](const std::string&, const auto& p) { factor = p.to_matrix()(0, 0); });
  return factor;
}

}  // namespace

TEST_CASE("average_experts: 1, 2 and 6 become 1.9, 2.45 and 4.65", "[train][average_experts]") {
  auto bank = experts_that_multiply({1, 2, 6});
  average_experts(bank, 0.3);
  const double expected[] = {1.9, 2.45, 4.65};
  for (index_t e = 0; e < 3; ++e) CHECK(std::abs(factor_of(bank.expert(e)) - expected[e]) <= test::bound<double>(3, 6.0));
  CHECK(std::abs(factor_of(mean_expert(bank)) - 3) <= test::bound<double>(3, 6.0));
  average_experts(bank, 2.0 / 3);
  for (index_t e = 0; e < 3; ++e) CHECK(std::abs(factor_of(bank.expert(e)) - 3) <= test::bound<double>(3, 6.0));
  average_experts(bank, 0);
  for (index_t e = 0; e < 3; ++e) CHECK(std::abs(factor_of(bank.expert(e)) - 3) <= test::bound<double>(3, 6.0));
}

TEST_CASE("average_experts: all arrays of an expert take part, the mean stays", "[train][average_experts]") {
  expert_bank<ffn<float>> bank(4, 5, 7, {.bias = true});
  for (index_t e = 0; e < 4; ++e)
    for_each_parameter(bank.expert(e), [&](const std::string&, parameter<float>& p) {
      const matrix<float> numbers = test::random_matrix<float>(1, p.size(), static_cast<std::uint64_t>(10 * e + p.cols()));
      p.fill([&](index_t i) { return numbers(0, i); });
    });
  const auto before = mean_expert(bank);
  auto apart = bank;
  average_experts(bank, 0.25);
  const auto after = mean_expert(bank);
  const auto numbers_of = [](const auto& expert) {
    std::vector<float> all;
    for_each_parameter(expert, [&](const std::string&, const auto& p) {
      const matrix<float> m = p.to_matrix();
      all.insert(all.end(), m.data(), m.data() + m.size());
    });
    return all;
  };
  const auto a = numbers_of(before), b = numbers_of(after), moved = numbers_of(bank.expert(2)), old = numbers_of(apart.expert(2));
  REQUIRE(a.size() == 5 * 7 * 2 + 5 + 7);
  for (std::size_t i = 0; i < a.size(); ++i) {
    CHECK(std::abs(a[i] - b[i]) <= test::bound<float>(4, 3.0F));
    CHECK(std::abs(moved[i] - (0.75F * old[i] + 0.25F / 3 * (4 * a[i] - old[i]))) <= test::bound<float>(4, 3.0F));
  }
}

TEST_CASE("average_experts: one expert is left alone, unlike ones and strange shares are refused",
          "[train][average_experts]") {
  auto one = experts_that_multiply({4});
  average_experts(one, 1);
  CHECK(factor_of(one.expert(0)) == 4);
  CHECK(factor_of(mean_expert(one)) == 4);
  auto two = experts_that_multiply({4, 2});
  for (const double beta : {-0.1, 1.5})
    CHECK_THROWS_AS(average_experts(two, beta), std::invalid_argument);
  CHECK_THROWS_WITH(average_experts(two, 2),
                    test::contains("experts are averaged with 0 <= beta <= 1, not 2"));
  expert_bank<ffn<double>> unlike(std::vector<ffn<double>>{ffn<double>(3, 4), ffn<double>(3, 5)});
  CHECK_THROWS_WITH(mean_expert(unlike),
                    "sluice: experts that are averaged need equal shapes; expert 1 differs from expert 0");
}
