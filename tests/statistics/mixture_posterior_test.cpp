// Bounds of multimodal posteriors: what they are with one modality, gradients, and what a label cannot know.
#include <sluice/statistics/mixture_posterior.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

posterior_component drawn_component(index_t batch, index_t width, index_t samples, std::uint64_t seed) {
  return {test::random_matrix<double>(batch, width, seed),
          test::random_matrix<double>(batch, width, seed + 1).array().abs().matrix() +
              matrix<double>::Constant(batch, width, 0.3),
          test::random_matrix<double>(samples * batch, width, seed + 2)};
}
/// A decoder whose fit is -|z - 1|^2 / 2.
Eigen::VectorXd plain_fit(const matrix<double>& z) { return -(z.array() - 1).square().rowwise().sum().matrix() / 2; }

}  // namespace

TEST_CASE("mixture_posterior: one modality is an ordinary autoencoder, and equal ones count once", "[statistics]") {
  const mixture_posterior posterior(posterior_family::normal, 1);
  const posterior_component c = drawn_component(3, 2, 4, 1);
  const auto z = posterior.sample({c});
  const auto one = posterior.evaluate({c}, z, {plain_fit(z[0])}, posterior_bound::closed_divergence);
  double divergence = 0;
  for (index_t i = 0; i < c.loc.size(); ++i) {
    const double m = c.loc.data()[i], s = c.scale.data()[i];
    divergence += (s * s + m * m - 1) / 2 - std::log(s);
  }
  CHECK_THAT(one.value, Catch::WithinRel(plain_fit(z[0]).sum() / 4 - divergence, 1e-12));
  for (const auto bound : {posterior_bound::importance_weighted, posterior_bound::importance_weighted_apart,
                           posterior_bound::closed_divergence}) {
    const double alone = posterior.evaluate({c}, z, {plain_fit(z[0])}, bound).value;
    const double twice = posterior.evaluate({c, c}, {z[0], z[0]}, {plain_fit(z[0]), plain_fit(z[0])}, bound).value;
    CHECK_THAT(twice, Catch::WithinRel(alone, 1e-12));
  }
}

TEST_CASE("mixture_posterior: gradients equal central differences", "[statistics][gradient]") {
  for (const auto family : {posterior_family::normal, posterior_family::laplace})
    for (const auto bound : {posterior_bound::importance_weighted, posterior_bound::importance_weighted_apart,
                             posterior_bound::closed_divergence}) {
      const mixture_posterior posterior(family, 1.3);
      std::vector<posterior_component> components{drawn_component(2, 2, 3, 10), drawn_component(2, 2, 3, 20)};
      const auto run = [&] {
        const auto z = posterior.sample(components);
        return std::pair{posterior.evaluate(components, z, {plain_fit(z[0]), plain_fit(z[1])}, bound), z};
      };
      const auto [r, z] = run();
      std::vector<matrix<double>> dz = r.dz;
      for (std::size_t m = 0; m < 2; ++m) dz[m] -= r.dfit[m].asDiagonal() * (z[m].array() - 1).matrix();
      const auto gradients = posterior.sample_backward(components, dz, r);
      const auto slope = [&](double& place) {
        const double kept = place, h = 1e-6;
        place = kept + h;
        const double above = run().first.value;
        place = kept - h;
        const double below = run().first.value;
        place = kept;
        return (above - below) / (2 * h);
      };
      for (std::size_t m = 0; m < 2; ++m)
        for (index_t i = 0; i < 4; ++i) {
          CHECK_THAT(gradients[m].loc.data()[i], Catch::WithinAbs(slope(components[m].loc.data()[i]), 1e-6));
          CHECK_THAT(gradients[m].scale.data()[i], Catch::WithinAbs(slope(components[m].scale.data()[i]), 1e-6));
        }
    }
}

TEST_CASE("mixture_posterior: what a label does not know of its picture is averaged away", "[statistics]") {
  // Pictures are -1 or 1, all of one label. The picture's encoder is loc = e x, the label's loc = l, both of scale 0.3;
  // the decoder of pictures is w z + b with normal errors of 0.5, the label's fit is always the same. Gradient ascent.
  const mixture_posterior posterior(posterior_family::normal, 1);
  const index_t batch = 16, samples = 8;
  matrix<double> x(batch, 1);
  for (index_t i = 0; i < batch; ++i) x(i, 0) = i % 2 == 0 ? -1 : 1;
  double e = 0.5, l = 0.4, w = 0.5, b = 0.2;
  for (std::uint64_t step = 0; step < 300; ++step) {
    const matrix<double> scale = matrix<double>::Constant(batch, 1, 0.3);
    const std::vector<posterior_component> components{
        {e * x, scale, test::random_matrix<double>(samples * batch, 1, 2 * step)},
        {matrix<double>::Constant(batch, 1, l), scale, test::random_matrix<double>(samples * batch, 1, 2 * step + 1)}};
    const auto z = posterior.sample(components);
    std::vector<Eigen::VectorXd> fit, errors;
    for (const matrix<double>& one : z) {
      errors.push_back(x.replicate(samples, 1).col(0) - w * one.col(0) - Eigen::VectorXd::Constant(one.rows(), b));
      fit.push_back(-2 * errors.back().array().square().matrix());
    }
    const auto r = posterior.evaluate(components, z, fit, posterior_bound::closed_divergence);
    std::vector<matrix<double>> dz = r.dz;
    double dw = 0, db = 0;
    for (std::size_t m = 0; m < 2; ++m) {
      const Eigen::VectorXd pull = 4 * r.dfit[m].cwiseProduct(errors[m]);
      dz[m].col(0) += w * pull;
      dw += pull.dot(z[m].col(0));
      db += pull.sum();
    }
    const auto gradients = posterior.sample_backward(components, dz, r);
    const double rate = 0.1 / static_cast<double>(batch);
    e += rate * gradients[0].loc.cwiseProduct(x).sum();
    l += rate * gradients[1].loc.sum();
    w += rate * dw;
    b += rate * db;
  }
  // From its own code a picture comes back, from the label's comes the mean of all pictures: the worst single answer
  // would be off by 4 half of the time, the mean is off by 1 always.
  CHECK(w * e + b > 0.6);
  CHECK(-w * e + b < -0.6);
  CHECK(std::abs(w * l + b) < 0.15);
}

TEST_CASE("mixture_posterior: shapes that do not fit are refused with a sentence", "[statistics]") {
  const mixture_posterior posterior(posterior_family::normal);
  posterior_component c = drawn_component(2, 2, 2, 1);
  CHECK_THROWS_WITH(mixture_posterior(posterior_family::normal, 0), Catch::Contains("scale > 0, not 0"));
  CHECK_THROWS_WITH(posterior.sample({}), Catch::Contains("needs a modality"));
  CHECK_THROWS_WITH(posterior.sample({c, drawn_component(2, 3, 2, 1)}), Catch::Contains("modality 1 has loc [2, 3]"));
  c.scale(1, 1) = 0;
  CHECK_THROWS_WITH(posterior.sample({c}), Catch::Contains("a scale of modality 0 is not above 0"));
}
