/// Trains the model once and measures it: the loop that a newcomer copies.
#pragma once

#include <sluice/core/dense_plan.hpp>
#include <sluice/exec/thread_pool.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/cross_entropy.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/schedule.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "model.hpp"
#include "result.hpp"

namespace digits {

struct training {
  std::uint64_t seed = 1;
  int epochs = 40;
  index_t batch_images = 32;
  double learning_rate = 3e-3;  // at its peak: a short warm-up, then half a cosine
  double weight_decay = 0.05;
  double label_smoothing = 0.1;
  int threads = 1;
  patch_shape patch = patch_shape::square;
  bool route_per_image = false;  // the router looks at all tokens of an image, or else at all tokens of the batch
  std::function<void(const batch&, context&)> complete;  // fills in what a router reads besides the tokens
};

namespace detail {

/// 0 .. n-1 in an order that depends on (seed, epoch) alone, on every machine. (std::shuffle differs between
/// libraries.)
inline std::vector<std::ptrdiff_t> shuffled(std::ptrdiff_t n, const sluice::random_source& random) {
  std::vector<std::ptrdiff_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), std::ptrdiff_t{0});
  for (std::ptrdiff_t i = n - 1; i > 0; --i) {
    const double u = random.uniform(sluice::random_site::user_site, i);
    std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(u * static_cast<double>(i + 1))]);
  }
  return order;
}

/// Learned numbers of each expert of a bank.
template <typename Expert>
void append_sizes(const sluice::expert_bank<Expert>& bank, std::vector<double>& sizes) {
  for (index_t e = 0; e < bank.experts(); ++e)
    sizes.push_back(static_cast<double>(sluice::parameter_count(bank.expert(e))));
}
template <typename... Banks>
void append_sizes(const sluice::expert_union<Banks...>& bank, std::vector<double>& sizes) {
  [&]<std::size_t... I>(std::index_sequence<I...>) { (append_sizes(bank.template bank<I>(), sizes), ...); }
  (std::index_sequence_for<Banks...>{});
}

/// Adds each assignment's weight to (class of its token, expert).
inline void add_weights(const sluice::sparse_plan<float>& plan, const std::vector<index_t>& labels, index_t tokens,
                        Eigen::MatrixXd& weight) {
  for (index_t i = 0; i < plan.size(); ++i)
    weight(labels[static_cast<std::size_t>(plan.token(i) / tokens)], plan.expert(i)) += plan.weight(i);
}
inline void add_weights(const sluice::soft_plan<float>& plan, const std::vector<index_t>& labels, index_t tokens,
                        Eigen::MatrixXd& weight) {
  for (index_t t = 0; t < plan.tokens(); ++t)
    for (index_t s = 0; s < plan.slot_count(); ++s)
      weight(labels[static_cast<std::size_t>(t / tokens)], s / plan.slots_per_expert()) += plan.combine()(t, s);
}

inline void add_weights(const sluice::dense_plan<float>& plan, const std::vector<index_t>& labels, index_t tokens,
                        Eigen::MatrixXd& weight) {
  const auto routed = plan.routed_tokens();
  for (index_t e = 0; e < plan.experts(); ++e)
    for (std::size_t j = 0; j < routed.size(); ++j)
      weight(labels[static_cast<std::size_t>(routed[j] / tokens)], e) += plan.weight(e, static_cast<index_t>(j));
}

/// Share of the tokens that no expert works on.
inline double share_without_expert(const sluice::sparse_plan<float>& plan) {
  index_t without = 0;
  for (index_t t = 0; t < plan.tokens(); ++t) without += plan.of_token(t).empty();
  return static_cast<double>(without) / static_cast<double>(plan.tokens());
}
template <typename Plan>
double share_without_expert(const Plan&) {
  return 0;
}

/// What the last forward call's routing says about the layer.
template <typename Mixture, typename Tape>
void describe_routing(const Mixture& mixture, const Tape& tape, const std::vector<index_t>& labels, index_t tokens,
                      result& r) {
  const auto& statistics = tape.statistics;
  r.experts_per_token = statistics.experts_per_token();
  r.load_cv = statistics.load_cv();
  r.dropped = share_without_expert(tape.plan);

  std::vector<double> sizes;
  append_sizes(mixture.bank(), sizes);
  double active = static_cast<double>(r.parameters);
  for (index_t e = 0; e < mixture.experts(); ++e) {
    const double rows_per_token = static_cast<double>(statistics.load[e]) / static_cast<double>(statistics.tokens);
    active += sizes[static_cast<std::size_t>(e)] * (rows_per_token - 1);
    r.experts.push_back(std::to_string(e));
  }
  r.active_parameters = std::llround(active);

  r.share.setZero(classes, mixture.experts());
  add_weights(tape.plan, labels, tokens, r.share);
  for (index_t d = 0; d < classes; ++d) {
    const double all = r.share.row(d).sum();
    if (all > 0) r.share.row(d) /= all;
  }
}
template <typename Expert, typename Tape>
void describe_routing(const sluice::dense_layer<Expert>&, const Tape&, const std::vector<index_t>&, index_t,
                      result& r) {
  r.experts_per_token = 1;
  r.active_parameters = r.parameters;
}

}  // namespace detail

/// The watcher hears of every epoch, watcher.epoch(number, of, mean loss, share of correct images); if it wants, with the model:
/// watcher.trained(model, tape).
template <typename Mixture, typename Watcher>
result train(Mixture mixture, const dataset& data, const training& how, Watcher& watcher) {
  const sluice::random_source random(how.seed);
  sluice::thread_pool threads(how.threads);
  const auto call = [&](const batch& b, bool training, index_t step) {
    context c;
    c.training = training;
    c.random = random.at_step(static_cast<std::uint64_t>(step));
    c.step = step;
    if (how.route_per_image) c.groups = b.groups;
    if (how.complete) how.complete(b, c);
    c.executor = threads;
    return c;
  };

  classifier<Mixture> model(how.patch, std::move(mixture));
  sluice::initialize(model, how.seed);
  typename classifier<Mixture>::tape tape;
  batch b;
  const sluice::softmax_cross_entropy<float> objective{.label_smoothing = how.label_smoothing};
  const auto evaluate = [&] {
    tape.dlogits.resize(tape.logits.rows(), tape.logits.cols());
    return objective(tape.logits, b.labels, tape.dlogits);
  };

  const index_t images = data.train.size();
  const index_t batches = (images + how.batch_images - 1) / how.batch_images, steps = how.epochs * batches;
  sluice::adamw<float> optimizer{{.beta2 = 0.99, .weight_decay = how.weight_decay, .clear_gradients = true}};
  const sluice::cosine_schedule rate{{.peak = how.learning_rate, .warmup = steps / 20, .steps = steps}};

  const auto start = std::chrono::steady_clock::now();
  for (index_t epoch = 0, step = 0; epoch < how.epochs; ++epoch) {
    const auto order = detail::shuffled(images, random.at_step(static_cast<std::uint64_t>(epoch)));
    index_t correct = 0;
    double loss = 0;
    for (index_t first = 0; first < images; first += how.batch_images, ++step) {
      const index_t last = std::min(first + how.batch_images, images);
      fill_batch(data.train, {order.begin() + first, order.begin() + last}, how.patch, b);
      const context c = call(b, true, step);
      model.forward(b, tape, c);
      const auto seen = evaluate();
      loss += seen.loss + tape.mixture.loss();
      correct += seen.correct;
      model.backward(b, tape);
      optimizer.set_learning_rate(rate(step));
      optimizer.step(model, c.executor);
      // What is learned without gradients, such as a bias that balances the load.
      model.mixture().after_step(tape.mixture);
    }
    if constexpr (requires { watcher.trained(std::as_const(model), tape); }) watcher.trained(std::as_const(model), tape);
    watcher.epoch(static_cast<int>(epoch) + 1, how.epochs, loss / static_cast<double>(batches),
                static_cast<double>(correct) / static_cast<double>(images));
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;

  result r;
  const index_t tokens = tokens_per_image(how.patch);
  r.tokens_per_second = static_cast<double>(how.epochs * images * tokens) / elapsed.count();
  r.parameters = sluice::parameter_count(model);
  std::vector<std::ptrdiff_t> all(static_cast<std::size_t>(data.test.size()));
  std::iota(all.begin(), all.end(), std::ptrdiff_t{0});
  fill_batch(data.test, all, how.patch, b);
  tape.mixture.statistics.clear();
  model.forward(b, tape, call(b, false, steps));
  r.accuracy = evaluate().accuracy();
  detail::describe_routing(model.mixture(), tape.mixture, b.labels, tokens, r);
  return r;
}

}  // namespace digits
