/// The clustered task of "Towards Understanding Mixture of Experts in Deep Learning" (Chen, Deng, Wu, Gu, Li 2022,
/// arXiv:2208.02813).
///
///   a sample is four patches of width d = 50, in random order: y α v_k (its label), β c_k (its cluster), ε γ v_k' (the label feature of
///   another cluster, with a random sign) and noise N(0, σ²/d I); all times 10.     α in (0.5, 2), β in (1, 2), γ in (0.5, 3), σ = 1
///   v_1..4, c_1..4 orthonormal; y and ε signs, k a cluster, k' another
///
/// What a sample shows depends on the cluster through a product, so no linear map of it tells the label; an expert for
/// every cluster needs little. Experts are networks on patches: class c scores the sum over patches and filters m of
/// φ(<w_cm, patch> + b_cm), φ(z) = z³, or z for linear experts. The router reads the sum of the patches. Training is
/// the paper's: full batch, experts by normalised gradients (each divided by its norm), the router by gradient descent,
/// initial values times 0.001.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/random.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/cross_entropy.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/sgd.hpp>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "measures.hpp"
#include "policy.hpp"

namespace study::clusters {

inline constexpr index_t patch_width = 50, patches = 4, kinds = 4;

struct samples {
  sluice::matrix<float> x;  ///< [n, patches * patch_width]
  std::vector<index_t> labels, clusters;
};
struct dataset {
  samples train, test;
};

namespace detail {

/// Numbers one after another from one seed.
class draws {
public:
  explicit draws(std::uint64_t seed) : random_(seed) {}
  double uniform(double from, double to) { return from + (to - from) * random_.uniform(site, next_++); }
  double normal() { return random_.normal(site, next_++); }
  double sign() { return uniform(0, 1) < 0.5 ? -1 : 1; }
  index_t below(index_t n) { return static_cast<index_t>(uniform(0, static_cast<double>(n))); }

private:
  static constexpr sluice::random_site site{"router_study.clusters"};
  sluice::random_source random_;
  index_t next_ = 0;
};

}  // namespace detail

inline dataset make(index_t samples_each, std::uint64_t seed) {
  detail::draws draw(seed);
  Eigen::MatrixXd basis(2 * kinds, patch_width);  // v, then c
  for (index_t i = 0; i < basis.rows(); ++i) {
    for (index_t d = 0; d < patch_width; ++d) basis(i, d) = draw.normal();
    for (index_t j = 0; j < i; ++j) basis.row(i) -= basis.row(i).dot(basis.row(j)) * basis.row(j);
    basis.row(i).normalize();
  }
  const auto fill = [&](samples& s) {
    s.x.resize(samples_each, patches * patch_width);
    for (index_t i = 0; i < samples_each; ++i) {
      const double y = draw.sign();
      const index_t k = draw.below(kinds), other = (k + 1 + draw.below(kinds - 1)) % kinds;
      Eigen::MatrixXd patch(patches, patch_width);
      patch.row(0) = y * draw.uniform(0.5, 2) * basis.row(k);
      patch.row(1) = draw.uniform(1, 2) * basis.row(kinds + k);
      patch.row(2) = draw.sign() * draw.uniform(0.5, 3) * basis.row(other);
      for (index_t d = 0; d < patch_width; ++d) patch(3, d) = draw.normal() / std::sqrt(double(patch_width));
      for (index_t p = patches - 1; p > 0; --p) patch.row(p).swap(patch.row(draw.below(p + 1)));
      for (index_t p = 0; p < patches; ++p)
        s.x.row(i).segment(p * patch_width, patch_width) = (10 * patch.row(p)).cast<float>();
      s.labels.push_back(y > 0 ? 1 : 0);
      s.clusters.push_back(k);
    }
  };
  dataset data;
  fill(data.train);
  fill(data.test);
  return data;
}

enum class activation { linear, cubic };

/// An expert: filters on patches, summed.
class patch_expert {
public:
  using scalar = float;

  patch_expert(index_t filters_a_class, activation form)
      : form_(form),
        weight_({2 * filters_a_class, patch_width}, sluice::parameter_role::weight,
                sluice::initial_values::uniform(1 / std::sqrt(double(patch_width)))),
        bias_({2 * filters_a_class}, sluice::parameter_role::vector) {}

  index_t inputs() const { return patches * patch_width; }
  index_t outputs() const { return 2; }
  index_t saved_columns() const { return patches * weight_.rows(); }

  void forward(tokens_in x, tokens_out y, tokens_out z) const {
    const index_t filters = weight_.rows();
    y.setZero();
    for (index_t p = 0; p < patches; ++p) {
      auto own = z.middleCols(p * filters, filters);
      own.noalias() = x.middleCols(p * patch_width, patch_width) * weight_.map().transpose();
      own.rowwise() += bias_.map().col(0).transpose();
      for (index_t c = 0; c < 2; ++c) {
        const auto a = own.middleCols(c * filters / 2, filters / 2).array();
        if (form_ == activation::cubic)
          y.col(c).array() += a.cube().rowwise().sum();
        else
          y.col(c).array() += a.rowwise().sum();
      }
    }
  }
  /// Of the data nobody asks for a gradient: dx stays zero.
  void backward(tokens_in x, tokens_in dy, tokens_out z, tokens_out dx) {
    const index_t filters = weight_.rows();
    dx.setZero();
    sluice::matrix<float> dz(x.rows(), filters);
    for (index_t p = 0; p < patches; ++p) {
      for (index_t c = 0; c < 2; ++c) {
        auto half = dz.middleCols(c * filters / 2, filters / 2);
        half = dy.col(c).replicate(1, filters / 2);
        if (form_ == activation::cubic)
          half.array() *= 3 * z.middleCols(p * filters + c * filters / 2, filters / 2).array().square();
      }
      weight_.gradient_map().noalias() += dz.transpose() * x.middleCols(p * patch_width, patch_width);
      bias_.gradient_map().col(0) += dz.colwise().sum().transpose();
    }
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
    visit("bias", self.bias_);
  }

private:
  activation form_;
  sluice::parameter<float> weight_, bias_;
};

static_assert(sluice::explain_differentiable_expert<patch_expert>());

struct training {
  std::uint64_t seed = 1;
  index_t steps = 300;
  double expert_rate =
      0.001;  ///< of normalised gradients; 0: the whole layer by Adam instead, as the paper's single networks
  double router_rate = 0.1;
  bool by_sample = false;  ///< each sample is a group of its own
  index_t look_every = 10;
};

/// Everything that is learned, times a factor.
template <typename Model>
void scale_parameters(Model& model, float factor) {
  sluice::for_each_parameter(model, [&](const std::string&, sluice::parameter<float>& p) {
    if (p.role() == sluice::parameter_role::weight)
      for (float& v : p.value()) v *= factor;
  });
}

/// w -= rate * gradient / (sum over the expert's arrays of the norms of their gradients).
inline void normalised_step(patch_expert& expert, double rate) {
  double norms = 0;
  sluice::for_each_parameter(expert, [&](const std::string&, sluice::parameter<float>& p) {
    norms += static_cast<double>(p.gradient_map().norm());
  });
  if (!(norms > 0)) return;
  sluice::for_each_parameter(expert, [&](const std::string&, sluice::parameter<float>& p) {
    p.map() -= static_cast<float>(rate / norms) * p.gradient_map();
  });
}

/// Trains a layer of patch experts and measures it.
template <typename Plan>
measured train(const policy<Plan>& router, const patch_expert& expert, const dataset& data, const training& how) {
  using layer_type = sluice::moe_layer<policy<Plan>, sluice::expert_bank<patch_expert>, policy_losses>;
  layer_type layer{router.on_parts(patches), sluice::expert_bank<patch_expert>(router.experts(), expert), {}};
  sluice::initialize(layer, how.seed);
  scale_parameters(layer, how.expert_rate > 0 ? 0.001F : 0.1F);

  const index_t n = data.train.x.rows();
  std::vector<index_t> alone, ids, sides;
  sluice::matrix<index_t> given(n, 1);
  for (index_t i = 0; i <= n; ++i) alone.push_back(i);
  const auto call = [&](const samples& s, bool is_training, index_t step) {
    context c;
    c.training = is_training;
    c.random = sluice::random_source(how.seed).at_step(static_cast<std::uint64_t>(step));
    c.step = step;
    if (how.by_sample) c.groups = alone;
    // Ids of a sample: nothing of it is discrete, so these are signs of its sum of patches.
    ids.clear(), sides.clear();
    for (index_t i = 0; i < s.x.rows(); ++i) {
      index_t id = 0;
      for (index_t d = 0; d < 8; ++d) {
        float sum = 0;
        for (index_t p = 0; p < patches; ++p) sum += s.x(i, p * patch_width + d);
        id += index_t{sum > 0} << d;
      }
      ids.push_back(id);
      sides.push_back(id & 1);
    }
    for (index_t i = 0; i < n; ++i) given(i, 0) = ids[static_cast<std::size_t>(i)] % layer.experts();
    c.token_ids = ids;
    c.expert_ids = given;
    c.modality_ids = sides;
    c.cluster_ids = sides;
    c.task_id = 0;
    return c;
  };

  typename layer_type::tape tape;
  sluice::matrix<float> y(n, 2), dy(n, 2), dx(n, layer.inputs());
  const sluice::softmax_cross_entropy<float> objective;
  sluice::sgd<float> descent{{.learning_rate = how.router_rate}};
  sluice::adamw<float> adam{{.learning_rate = 0.01, .weight_decay = 5e-4}};
  routing_watch watch;
  measured m;
  const auto look = [&](index_t step) {
    tape.statistics.clear();
    layer.forward(data.test.x, y, tape, call(data.test, false, step));
    m.accuracy = objective(y, data.test.labels, dy).accuracy();
    watch.look(tape, kinds, [&](index_t t) { return data.test.clusters[static_cast<std::size_t>(t)]; });
    m.dropped = 0;
    std::vector<std::uint8_t> met(static_cast<std::size_t>(n), 0);
    for_each_meeting(tape.plan, [&](index_t t, index_t, double) { met[static_cast<std::size_t>(t)] = 1; });
    for (const auto one : met) m.dropped += (one == 0) / static_cast<double>(n);
  };

  const auto start = std::chrono::steady_clock::now();
  for (index_t step = 0; step < how.steps; ++step) {
    if (step % how.look_every == 0) look(step);
    tape.statistics.clear();
    layer.forward(data.train.x, y, tape, call(data.train, true, step));
    objective(y, data.train.labels, dy);
    sluice::zero_gradients(layer);
    layer.backward(dy, dx, tape);
    if (how.expert_rate > 0) {
      descent.step(layer.router());
      for (index_t e = 0; e < layer.experts(); ++e) normalised_step(layer.bank().expert(e), how.expert_rate);
    } else {
      adam.step(layer);
    }
    layer.after_step(tape);
  }
  look(how.steps);
  m.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  m.over_training = watch.records();
  return m;
}

}  // namespace study::clusters
