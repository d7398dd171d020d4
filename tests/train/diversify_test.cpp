#include <sluice/train/diversify.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("diversify_experts: copies of one expert, masked each in its own way", "[train][diversify]") {
  ffn<double> trained(20, 30, {.bias = true});
  initialize(trained, 3);
  for (index_t i = 0; i < trained.up_bias().size(); ++i) trained.up_bias().data()[i] = 1 + static_cast<double>(i);
  expert_bank<ffn<double>> bank(3, ffn<double>(20, 30, {.bias = true}));
  diversify_experts(bank, trained, {.masked = 0.25}, random_source(5));
  const matrix<double> up = trained.up().to_matrix();
  for (index_t e = 0; e < 3; ++e) {
    const matrix<double> own = bank.expert(e).up().to_matrix();
    index_t zeros = 0;
    for (index_t i = 0; i < up.size(); ++i) {
      CHECK((own.data()[i] == 0 || own.data()[i] == up.data()[i]));
      zeros += own.data()[i] == 0;
    }
    // Binomial within five deviations.
    CHECK(std::abs(double(zeros) - 600 * .25) < 5 * std::sqrt(600 * .25 * .75));
    CHECK(bank.expert(e).up_bias().to_matrix() == trained.up_bias().to_matrix());
    if (e > 0) CHECK(own != bank.expert(0).up().to_matrix());
  }
  diversify_experts(bank, trained, {.masked = 0, .noise = 0.1}, random_source(5));
  const matrix<double> added = bank.expert(1).down().to_matrix() - trained.down().to_matrix();
  const double deviation = std::sqrt(trained.down().to_matrix().array().square().mean());
  CHECK(std::sqrt(added.array().square().mean()) == Approx(0.1 * deviation).epsilon(0.2));
  diversify_experts(bank, trained, {.masked = 0}, random_source(5));
  CHECK(bank.expert(2).down().to_matrix() == trained.down().to_matrix());
}

TEST_CASE("diversify_experts: refuses other experts and shares that are none", "[train][diversify]") {
  expert_bank<ffn<double>> bank(2, ffn<double>(4, 5));
  CHECK_THROWS_AS(diversify_experts(bank, ffn<double>(4, 6), {}, random_source(1)), std::invalid_argument);
  CHECK_THROWS_AS(diversify_experts(bank, ffn<double>(4, 5, {.bias = true}), {}, random_source(1)),
                  std::invalid_argument);
  CHECK_THROWS_AS(diversify_experts(bank, ffn<double>(4, 5), {.masked = 1}, random_source(1)), std::invalid_argument);
}
