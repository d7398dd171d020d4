#include <sluice/codebook/mask_and_replace.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// [from, to] of one step or of all up to one.
matrix<double> transitions(index_t codes, const mask_and_replace::rates& r) {
  matrix<double> m = matrix<double>::Constant(codes + 1, codes + 1, r.replace);
  m.diagonal().array() += r.keep;
  m.col(codes).setConstant(r.mask);
  m.row(codes).setZero();
  m(codes, codes) = 1;
  return m;
}

}  // namespace

TEST_CASE("mask_and_replace: steps one after the other are what is said of all of them", "[codebook][diffusion]") {
  const mask_and_replace noise(5, 7);
  matrix<double> all = matrix<double>::Identity(6, 6);
  for (index_t t = 1; t <= 7; ++t) {
    const matrix<double> step = transitions(5, noise.at(t));
    CHECK((step.rowwise().sum().array() - 1).abs().maxCoeff() < 1e-12);
    all = (all * step).eval();
    CHECK(test::largest_difference(all, transitions(5, noise.up_to(t))) < 1e-12);
  }
  CHECK(noise.up_to(1).keep == Approx(0.99999));
  CHECK(noise.up_to(7).mask == Approx(0.99999));
}

TEST_CASE("mask_and_replace: the posterior is Bayes' rule", "[codebook][diffusion]") {
  const mask_and_replace noise(4, 5, {.first_keep = 0.9, .last_keep = 0.1, .first_mask = 0.05, .last_mask = 0.6});
  const std::vector<double> p{0.5, 0.2, 0.05, 0.25};
  for (index_t t = 1; t <= 5; ++t)
    for (index_t token = 0; token <= 4; ++token) {
      const matrix<double> step = transitions(4, noise.at(t)), before = transitions(4, noise.up_to(t - 1)), after = transitions(4, noise.up_to(t));
      std::vector<double> out(5);
      noise.posterior(token, t, p, out);
      double sum = 0;
      for (index_t x = 0; x <= 4; ++x) {
        double expected = 0;
        for (index_t c = 0; c < 4; ++c) expected += p[as_size(c)] * step(x, token) * before(c, x) / after(c, token);
        CHECK(out[as_size(x)] == Approx(expected).margin(1e-14));
        sum += out[as_size(x)];
      }
      CHECK(sum == Approx(1));
    }
}

TEST_CASE("mask_and_replace: where codes are only masked, a code that is not was never another", "[codebook][diffusion]") {
  const mask_and_replace noise(3, 10, {.first_keep = 0.9, .last_keep = 0, .first_mask = 0.1, .last_mask = 1});
  const std::vector<double> p{0.5, 0.2, 0.3}, none{0.5, 0, 0.5};
  std::vector<double> out(4);
  for (index_t t = 1; t <= 9; ++t) {
    CAPTURE(t);
    for (const auto& belief : {p, none}) {
      noise.posterior(1, t, belief, out);
      CHECK(out[1] == Approx(1));
      CHECK((out[0] == 0 && out[2] == 0 && out[3] == 0));
    }
    // Of ten masks one more a step: the mask was there with (t - 1) / t, else p.
    noise.posterior(3, t, p, out);
    for (std::size_t c = 0; c < 3; ++c) CHECK(out[c] == Approx(p[c] / double(t)));
    CHECK(out[3] == Approx(double(t - 1) / double(t)).margin(1e-14));
  }
  CHECK_THROWS_WITH(noise.posterior(1, 10, p, out), Catch::Contains("to token 1 from no code in 10 steps"));
}

TEST_CASE("mask_and_replace: draws have the frequencies, masks stay, step 0 changes nothing", "[codebook][diffusion]") {
  const mask_and_replace noise(3, 4, {.first_keep = 0.9, .last_keep = 0.2, .first_mask = 0.05, .last_mask = 0.5});
  std::vector<index_t> ids(30000, 1), out(30000);
  ids[7] = 3;
  noise.sample(ids, 4, random_source(5), out);
  CHECK(out[7] == 3);
  std::vector<double> share(4, 0);
  for (const index_t id : out) share[as_size(id)] += 1.0 / 30000;
  const double third = noise.up_to(4).replace;
  const std::vector<double> expected{third, third + 0.2, third, 0.5};
  for (std::size_t c = 0; c < 4; ++c) CHECK(std::abs(share[c] - expected[c]) < 4 * std::sqrt(0.25 / 30000));
  noise.sample(ids, 0, random_source(5), out);
  CHECK(out == ids);
}

TEST_CASE("mask_and_replace: what does not fit is refused with its numbers", "[codebook][diffusion]") {
  CHECK_THROWS_AS(mask_and_replace(0, 4), std::invalid_argument);
  CHECK_THROWS_AS(mask_and_replace(3, 4, {.first_keep = 0.1, .last_keep = 0.5}), std::invalid_argument);
  CHECK_THROWS_WITH(mask_and_replace(3, 2, {.first_keep = 0.5, .last_keep = 0.4, .first_mask = 0.1, .last_mask = 0.6}),
                    Catch::Contains("step 2 masks more, from 0.1 to 0.6, than it takes from what is kept, from 0.5 to 0.4"));
  const mask_and_replace noise(3, 4);
  CHECK_THROWS_WITH(noise.at(0), Catch::Contains("steps 1 to 4, not 0"));
  const std::vector<index_t> ids{4};
  std::vector<index_t> out(1);
  CHECK_THROWS_WITH(noise.sample(ids, 1, random_source(1), out), Catch::Contains("tokens 0 to 3, not 4"));
}
