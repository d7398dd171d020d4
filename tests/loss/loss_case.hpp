// What a router hands to a loss, made by hand: fixture F (four tokens, four experts) and random batches.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/train/gradient_check.hpp>

#include "../support.hpp"

#include <vector>

namespace sluice::test {

/// Half a unit of the last digit of numbers that are given with six decimals.
inline constexpr double six_decimals = 5e-7;

template <typename Scalar>
struct loss_case {
  score_signals<Scalar> seen;
  score_gradients<Scalar> gradients;
  sparse_plan<Scalar> plan;
  std::vector<std::uint8_t> mask;
  std::vector<index_t> groups;

  index_t tokens() const { return seen.clean.rows(); }
  index_t experts() const { return seen.clean.cols(); }

  routing_context<Scalar> context() const {
    routing_context<Scalar> c;
    c.training = true;
    c.token_mask = mask;
    c.groups = groups;
    return c;
  }

  void set_clean(const matrix<Scalar>& logits) {
    seen.clean.resize(logits.rows(), logits.cols());
    seen.clean.map() = logits;
  }

  void set_fixed_noise(const matrix<Scalar>& draws, Scalar sigma) {
    seen.has_noise = true;
    seen.sigma = sigma;
    seen.noisy_storage.resize(tokens(), experts());
    seen.noisy_storage.map() = seen.clean.map() + sigma * draws;
  }

  void set_learned_noise(const matrix<Scalar>& draws, const matrix<Scalar>& deviation) {
    seen.has_noise = true;
    seen.noise_std.resize(tokens(), experts());
    seen.noise_std.map() = deviation;
    seen.noisy_storage.resize(tokens(), experts());
    seen.noisy_storage.map() = seen.clean.map() + deviation.cwiseProduct(draws);
  }

  /// The k largest noisy logits of every token; an expert keeps `capacity` of them, first choices first.
  void choose(index_t k, index_t capacity) {
    seen.top_k = k;
    plan.reset(tokens(), experts());
    std::vector<index_t> ids(static_cast<std::size_t>(k));
    std::vector<index_t> queue(static_cast<std::size_t>(experts()), 0);
    for (index_t j = 0; j < k; ++j)
      for (index_t t = 0; t < tokens(); ++t) {
        if (context().is_padding(t)) continue;
        kernel::top_k(seen.noisy().row(t), experts(), k, ids.data());
        const index_t e = ids[static_cast<std::size_t>(j)];
        const index_t slot = queue[static_cast<std::size_t>(e)]++;
        if (slot < capacity)
          plan.add(t, e, Scalar(0.5), j);
        else
          plan.add_dropped({t, e, j, slot, Scalar(0.5)});
      }
    plan.finish();
  }

  /// Value of the loss; gradients start from zero.
  template <typename Loss>
  Scalar evaluate(const Loss& loss) {
    gradients.zero_like(seen);
    return loss(seen, plan, context(), gradients);
  }

  /// Compares the loss's gradients by clean logits, noisy logits and deviations, each on its own, with central
  /// differences.
  template <typename Loss>
  gradient_report check(const Loss& loss) {
    evaluate(loss);
    const auto span = [](auto& m) { return std::span(m.data(), static_cast<std::size_t>(m.size())); };
    std::vector<checked_input> inputs{{"clean", span(seen.clean), span(std::as_const(gradients.clean))}};
    if (seen.has_noise)
      inputs.push_back({"noisy", span(seen.noisy_storage), span(std::as_const(gradients.noisy))});
    if (!seen.noise_std.empty())
      inputs.push_back({"noise_std", span(seen.noise_std), span(std::as_const(gradients.noise_std))});
    struct nothing {
    } model;
    score_gradients<Scalar> scratch;
    return check_gradients(model, inputs, [&] {
      scratch.zero_like(seen);
      return static_cast<double>(loss(seen, plan, context(), scratch));
    });
  }
};

/// Fixture F with the k largest logits chosen and nothing dropped.
template <typename Scalar = double>
loss_case<Scalar> fixture_f(index_t k) {
  loss_case<Scalar> c;
  matrix<Scalar> logits(4, 4);
  logits << 2.0, 1.0, 0.0, -1.0,  //
      1.5, 1.0, 0.5, 0.0,         //
      0.0, 3.0, 1.0, 0.5,         //
      2.5, 0.0, -0.5, 0.5;
  c.set_clean(logits);
  c.choose(k, 4);
  return c;
}

/// Normal logits, fixed noise of deviation 1/2, k = 2, room for three tokens an expert.
template <typename Scalar = double>
loss_case<Scalar> random_case(index_t tokens, index_t experts, std::uint64_t seed) {
  loss_case<Scalar> c;
  c.set_clean(random_matrix<Scalar>(tokens, experts, seed));
  c.set_fixed_noise(random_matrix<Scalar>(tokens, experts, seed + 1), Scalar(0.5));
  c.choose(std::min<index_t>(2, experts), 3);
  return c;
}

}  // namespace sluice::test
