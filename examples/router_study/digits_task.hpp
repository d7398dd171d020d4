/// The handwritten digits of the digits example, with its model and training loop, for any policy.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/moe_layer.hpp>

#include <chrono>
#include <numeric>
#include <utility>
#include <vector>

#include "../digits/train.hpp"
#include "measures.hpp"
#include "policy.hpp"

namespace study::images {

inline constexpr index_t token_size = 32, hidden = 64, expert_count = 8;
inline constexpr digits::patch_shape patch = digits::patch_shape::square;
inline constexpr index_t tokens = digits::tokens_per_image(patch);

/// What routers may read besides the tokens: made of the pixels, without the labels.
class given_context {
public:
  void operator()(const digits::batch& b, context& c) {
    ids_.clear(), inked_.clear(), quarter_.clear();
    for (index_t i = 0; i < b.size(); ++i) {
      const index_t darkest = darkest_quarter(b.images.row(i));
      for (index_t t = 0; t < tokens; ++t) {
        index_t pattern = 0;
        for (index_t p = 0; p < b.patches.cols(); ++p) pattern += index_t{b.patches(i * tokens + t, p) > 0} << p;
        ids_.push_back(pattern * tokens + t);
        inked_.push_back(pattern != 0);
        quarter_.push_back(darkest);
      }
    }
    experts_.resize(static_cast<index_t>(ids_.size()), 1);
    for (index_t t = 0; t < experts_.rows(); ++t) experts_(t, 0) = ids_[static_cast<std::size_t>(t)] % expert_count;
    c.token_ids = ids_;
    c.expert_ids = experts_;
    c.modality_ids = inked_;
    c.cluster_ids = quarter_;
    c.task_id = 0;
  }

private:
  template <typename Row>
  static index_t darkest_quarter(const Row& pixels) {
    float ink[4] = {};
    for (index_t p = 0; p < pixels.size(); ++p) ink[p / 32 * 2 + p % 8 / 4] += pixels(p);
    return std::max_element(ink, ink + 4) - ink;
  }

  std::vector<index_t> ids_, inked_, quarter_;
  sluice::matrix<index_t> experts_;
};

/// Looks at the routing of some test images after every epoch.
template <typename Progress>
class watcher {
public:
  watcher(const digits::dataset& data, const digits::training& how, Progress& shown) : how_(how), shown_(shown) {
    std::vector<std::ptrdiff_t> some(static_cast<std::size_t>(std::min<std::ptrdiff_t>(data.test.size(), 150)));
    std::iota(some.begin(), some.end(), std::ptrdiff_t{0});
    digits::fill_batch(data.test, some, patch, batch_);
  }

  void epoch(int epoch, int of, double, double) { shown_(static_cast<double>(epoch) / of); }

  template <typename Model, typename Tape>
  void trained(const Model& model, const Tape&) {
    Tape tape;
    context c;
    if (how_.route_per_image) c.groups = batch_.groups;
    given_context given;
    given(batch_, c);
    c.step = step_ += 1000000;  // schedules are over
    model.forward(batch_, tape, c);
    watch_.look(tape.mixture, digits::classes,
                [&](index_t t) { return batch_.labels[static_cast<std::size_t>(t / tokens)]; });
    without_mixture_ = sluice::parameter_count(model) - sluice::parameter_count(model.mixture());
  }

  std::vector<routing_record> records() const { return watch_.records(); }
  index_t parameters_without_mixture() const { return without_mixture_; }

private:
  digits::training how_;
  Progress& shown_;
  digits::batch batch_;
  routing_watch watch_;
  index_t without_mixture_ = 0, step_ = 0;
};

template <typename Plan, typename Progress>
measured train(const policy<Plan>& router, const digits::dataset& data, digits::training how, Progress& shown) {
  using bank = sluice::expert_bank<sluice::ffn<float>>;
  how.complete = given_context();
  watcher<Progress> watch(data, how, shown);
  const auto start = std::chrono::steady_clock::now();
  const digits::result r = digits::train(
      sluice::moe_layer<policy<Plan>, bank, policy_losses>{router, bank{router.experts(), token_size, hidden}, {}},
      data, how, watch);
  measured m;
  m.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  m.accuracy = r.accuracy;
  m.dropped = r.dropped;
  m.flops = 2 * static_cast<double>(r.active_parameters - watch.parameters_without_mixture());
  m.over_training = watch.records();
  m.over_training.back().load_cv = r.load_cv;  // of all test images
  m.over_training.back().experts_per_token = r.experts_per_token;
  return m;
}

}  // namespace study::images
