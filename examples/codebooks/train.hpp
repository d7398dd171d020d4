/// Trains a quantiser inside a linear autoencoder and measures what it keeps of vectors it has not seen.
#pragma once

#include <sluice/codebook/code_usage.hpp>
#include <sluice/codebook/quantizer.hpp>
#include <sluice/codebook/structure/projected.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/initialize.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "vectors.hpp"

namespace codebooks {

struct training {
  std::uint64_t seed = 1;
  int epochs = 200;
  index_t batch = 128;
  double rate = 3e-3;
};

/// Every fourth vector (row mod 4 = 3) is kept for the test.
struct split {
  matrix<float> train, test;
  vectors shape;  ///< without rows

  explicit split(const vectors& v) : shape{.rows = {}, .side = v.side, .channels = v.channels} {
    std::vector<index_t> own, other;
    for (index_t r = 0; r < v.rows.rows(); ++r) (r % 4 == 3 ? other : own).push_back(r);
    train = v.rows(own, Eigen::all);
    test = v.rows(other, Eigen::all);
  }
};

struct measured {
  double bits = 0;                ///< a vector
  double error = 0;               ///< share of the test vectors' variance that is lost
  double perplexity = 0;          ///< mean over the columns of codes
  double used = 0;                ///< share of codes that are used, mean over the columns
  index_t codes = 0;              ///< of all columns
  index_t dead = 0;               ///< of them never chosen by a training vector
  index_t revived = 0;            ///< codes that a repair has moved, over training
  double vectors_per_second = 0;  ///< encoding
  matrix<float> pictures;         ///< what codes of the first column decode to, the most used first
};

namespace detail {

inline double variance(const matrix<float>& rows) { return (rows.rowwise() - rows.colwise().mean()).squaredNorm(); }

template <typename Q>
matrix<index_t> encode(const Q& q, const matrix<float>& x) {
  typename Q::workspace ws;
  matrix<index_t> ids(x.rows(), q.code_columns());
  q.encode(x, ids, ws);
  return ids;
}

/// What the codes of the first column that are used most decode to, each as one of the vectors has it.
template <typename Q>
matrix<float> decoded_codes(const Q& q, const matrix<index_t>& ids, index_t most) {
  sluice::code_usage usage(q.codes(0));
  std::vector<index_t> firsts(static_cast<std::size_t>(q.codes(0)), -1), used;
  for (index_t r = ids.rows() - 1; r >= 0; --r) {
    usage.add(&ids(r, 0), 1);
    firsts[static_cast<std::size_t>(ids(r, 0))] = r;
  }
  for (index_t c = 0; c < q.codes(0); ++c)
    if (usage.count(c) > 0) used.push_back(c);
  std::stable_sort(used.begin(), used.end(), [&](index_t a, index_t b) { return usage.count(a) > usage.count(b); });
  const index_t count = std::min(most, static_cast<index_t>(used.size()));
  typename Q::workspace ws;
  matrix<index_t> some(count, q.code_columns());
  for (index_t c = 0; c < count; ++c)
    some.row(c) = ids.row(firsts[static_cast<std::size_t>(used[static_cast<std::size_t>(c)])]);
  matrix<float> decoded(count, q.outputs());
  q.decode(some, decoded, ws);
  return decoded;
}

}  // namespace detail

/// `shown` hears how far the training is, 0..1. Equal seeds give equal bits.
template <sluice::Quantizer Q>
measured train(Q quantizer, const split& data, const training& how, const std::function<void(double)>& shown) {
  sluice::projected_quantizer model{data.train.cols(), std::move(quantizer)};
  sluice::initialize(model, how.seed);
  sluice::adamw<float> optimizer{{.weight_decay = 0}};
  typename decltype(model)::tape tape;
  const sluice::random_source draws(how.seed);
  constexpr sluice::random_site order_site("codebooks.order");
  std::vector<index_t> order(static_cast<std::size_t>(data.train.rows()));
  std::iota(order.begin(), order.end(), index_t(0));
  measured m;
  index_t step = 0;
  const index_t batches = (data.train.rows() + how.batch - 1) / how.batch, steps = how.epochs * batches;
  for (int epoch = 0; epoch < how.epochs; ++epoch) {
    for (std::size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1],
                order[static_cast<std::size_t>(
                    draws.at_step(static_cast<std::uint64_t>(epoch)).uniform(order_site, static_cast<index_t>(i)) *
                    static_cast<double>(i))]);
    for (std::size_t begin = 0; begin < order.size(); begin += static_cast<std::size_t>(how.batch)) {
      const auto end = std::min(order.size(), begin + static_cast<std::size_t>(how.batch));
      const matrix<float> x = data.train(std::vector<index_t>(order.begin() + static_cast<std::ptrdiff_t>(begin),
                                                              order.begin() + static_cast<std::ptrdiff_t>(end)),
                                         Eigen::all);
      matrix<float> y(x.rows(), x.cols()), dx(x.rows(), x.cols());
      model.forward(x, y, tape,
                    {.training = true, .random = draws.at_step(static_cast<std::uint64_t>(step)), .step = step});
      const matrix<float> dy = (2.0F / static_cast<float>(x.rows())) * (y - x);
      sluice::zero_gradients(model);
      model.backward(dy, dx, tape);
      const double left = 1 - static_cast<double>(step) / static_cast<double>(steps);
      optimizer.set_learning_rate(how.rate * std::min(1.0, 2 * left));
      optimizer.step(model);
      model.after_step(tape);
      model.for_each_replaced(tape, [&](const auto&, index_t) { ++m.revived; });
      sluice::forget_replaced(optimizer, model, tape);
      ++step;
    }
    shown(static_cast<double>(epoch + 1) / how.epochs);
  }

  const matrix<index_t> ids = detail::encode(model, data.train);
  m.dead = 0;
  for (index_t column = 0; column < model.code_columns(); ++column) {
    const index_t codes = model.codes(column);
    sluice::code_usage usage(codes);
    const matrix<index_t> own = ids.col(column);
    usage.add(own.data(), own.rows());
    m.bits += std::log2(static_cast<double>(codes));
    m.perplexity += usage.perplexity() / static_cast<double>(model.code_columns());
    m.used += usage.utilisation() / static_cast<double>(model.code_columns());
    m.codes += codes;
    m.dead += codes - usage.used();
  }
  typename decltype(model)::workspace ws;
  matrix<float> y(data.test.rows(), data.test.cols());
  model.forward(data.test, y, ws);
  m.error = (y - data.test).squaredNorm() / detail::variance(data.test);
  const auto begin = std::chrono::steady_clock::now();
  index_t encoded = 0;
  double seconds = 0;
  matrix<index_t> again(data.train.rows(), model.code_columns());
  while (seconds < 0.02) {
    model.encode(data.train, again, ws);
    encoded += data.train.rows();
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  m.vectors_per_second = static_cast<double>(encoded) / seconds;
  m.pictures = detail::decoded_codes(model, ids, 32);
  return m;
}

}  // namespace codebooks
