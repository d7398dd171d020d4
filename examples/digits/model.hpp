/// The model: an image becomes tokens, the tokens go through a mixture-of-experts layer, their mean is classified.
///
///   image [64] -> N patches [P]      h[t] = patch[t] Wp^T + position[t] + image Wi^T     [N,D]
///                                    z    = mean over the tokens of h + mixture(h)       [D]
///                                    p    = softmax(z Wo^T + b)                          [classes]
///
/// The term of the whole image lets each token, and so the router, know what it is a part of.
/// `Mixture` is a sluice::moe_layer, or anything with its forward, backward and tape: dense_ffn below is the baseline.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/softmax.hpp>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "dataset.hpp"

namespace digits {

using sluice::index_t;
using sluice::parameter;
using context = sluice::routing_context<float>;

/// Some images, cut into tokens.
struct batch {
  row_matrix patches;           // [B*N, P], the tokens of an image are neighbours
  row_matrix images;            // [B, 64]
  std::vector<int> labels;      // [B]
  std::vector<index_t> groups;  // [B+1] first token of each image: what routers that look at a whole sequence need

  index_t size() const { return images.rows(); }
};

inline void fill_batch(const labelled_images& from, const std::vector<std::ptrdiff_t>& chosen, patch_shape shape,
                       batch& b) {
  cut_into_tokens(from, chosen, shape, b.patches);
  b.images.resize(static_cast<index_t>(chosen.size()), pixels_per_image);
  b.labels.clear();
  b.groups.assign(1, 0);
  for (const auto i : chosen) {
    b.images.row(static_cast<index_t>(b.labels.size())) = from.pixels.row(i).array() - 0.5f;
    b.labels.push_back(from.labels[static_cast<std::size_t>(i)]);
    b.groups.push_back(b.groups.back() + tokens_per_image(shape));
  }
}

template <typename Mixture>
class classifier {
public:
  struct tape {
    row_matrix h, y, mean, logits;
    row_matrix dlogits, dmean, dy, dh, dimages;
    typename Mixture::tape mixture;
  };

  classifier(patch_shape shape, Mixture mixture) : tokens_(tokens_per_image(shape)), mixture_(std::move(mixture)) {
    const index_t width = mixture_.inputs(), patch = token_width(shape);
    const auto weight = [](index_t out, index_t in, double gain) {
      return parameter<float>({out, in}, sluice::parameter_role::weight,
                              sluice::initial_values::normal(gain / std::sqrt(static_cast<double>(in))));
    };
    patch_ = weight(width, patch, 2);  // pixels of -0.5..0.5 are smaller than unit normal
    image_ = weight(width, pixels_per_image, 2);
    position_ = {{tokens_, width}, sluice::parameter_role::vector, sluice::initial_values::normal(0.5)};
    head_ = weight(classes, width, 1);
    head_bias_ = {{classes}, sluice::parameter_role::vector};
  }

  /// Leaves the logits [B, classes] in the tape.
  void forward(const batch& b, tape& t, const context& c) const {
    t.h.resize(b.patches.rows(), mixture_.inputs());
    t.y.resize(b.patches.rows(), mixture_.inputs());
    t.mean.resize(b.size(), mixture_.inputs());
    t.logits.resize(b.size(), classes);

    sluice::linear_forward<float>(b.patches, patch_, t.h, c.executor);
    sluice::linear_forward<float>(b.images, image_, t.mean, c.executor);
    for (index_t i = 0; i < b.size(); ++i) {
      tokens_of(t.h, i) += position_.map();
      tokens_of(t.h, i).rowwise() += t.mean.row(i);
    }
    mixture_.forward(t.h, t.y, t.mixture, c);
    for (index_t i = 0; i < b.size(); ++i) t.mean.row(i) = (tokens_of(t.h, i) + tokens_of(t.y, i)).colwise().mean();
    sluice::linear_forward<float>(t.mean, head_, t.logits, c.executor);
    t.logits.rowwise() += head_bias_.map().col(0).transpose();
  }

  /// Adds the gradients for t.dlogits, the gradient of the loss with respect to the logits of the last forward call.
  void backward(const batch& b, tape& t, const context& c) {
    sluice::ensure_gradients(*this);
    t.dmean.setZero(b.size(), mixture_.inputs());
    sluice::linear_backward<float>(t.mean, head_, t.dlogits, t.dmean, c.executor);
    sluice::add_column_sums<float>(t.dlogits, head_bias_.gradient());

    t.dy.resize(t.h.rows(), t.h.cols());
    t.dh.resize(t.h.rows(), t.h.cols());
    for (index_t i = 0; i < b.size(); ++i)
      tokens_of(t.dy, i).rowwise() = (t.dmean.row(i) / static_cast<float>(tokens_)).eval();
    mixture_.backward(t.dy, t.dh, t.mixture);
    t.dh += t.dy;  // the residual road

    for (index_t i = 0; i < b.size(); ++i) {
      position_.gradient_map() += tokens_of(t.dh, i);
      t.dmean.row(i) = tokens_of(t.dh, i).colwise().sum();
    }
    // Pixels need no gradient, so only the weights' half of the backward pass is called.
    sluice::linear_backward_weight<float>(b.patches, patch_, t.dh, 0, patch_.rows());
    sluice::linear_backward_weight<float>(b.images, image_, t.dmean, 0, image_.rows());
  }

  Mixture& mixture() noexcept { return mixture_; }
  const Mixture& mixture() const noexcept { return mixture_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("patch", self.patch_);
    visit("image", self.image_);
    visit("position", self.position_);
    visit("mixture", self.mixture_);
    visit("head", self.head_);
    visit("head_bias", self.head_bias_);
  }

private:
  template <typename Matrix>
  auto tokens_of(Matrix& m, index_t image) const {
    return m.middleRows(image * tokens_, tokens_);
  }

  index_t tokens_;
  parameter<float> patch_, image_, position_, head_, head_bias_;
  Mixture mixture_;
};

/// Mean cross-entropy of softmax(logits) with the labels, smoothed: the right class counts 1 - smoothing, and
/// `smoothing` is shared by all classes. Leaves the gradient in dlogits and adds the number of right answers to
/// `correct`.
inline double cross_entropy(const row_matrix& logits, const std::vector<int>& labels, float smoothing,
                            row_matrix& dlogits, index_t& correct) {
  double loss = 0;
  dlogits.resize(logits.rows(), logits.cols());
  for (index_t i = 0; i < logits.rows(); ++i) {
    const int label = labels[static_cast<std::size_t>(i)];
    const float normalizer = sluice::kernel::log_sum_exp(&logits(i, 0), logits.cols());
    for (index_t c = 0; c < logits.cols(); ++c) {
      const float target = (c == label ? 1 - smoothing : 0) + smoothing / static_cast<float>(logits.cols());
      const float log_probability = logits(i, c) - normalizer;
      loss -= target * log_probability;
      dlogits(i, c) = (std::exp(log_probability) - target) / static_cast<float>(logits.rows());
    }
    correct += sluice::kernel::arg_max(&logits(i, 0), logits.cols()) == label;
  }
  return loss / static_cast<double>(logits.rows());
}

/// The baseline: one feed-forward network that sees every token, with the interface of a mixture layer.
class dense_ffn {
public:
  struct tape {
    sluice::expert_bank<sluice::ffn<float>>::tape bank;
    sluice::routing_statistics statistics;
    std::vector<index_t> offsets;
    context call;
    row_matrix x;
    float loss() const { return 0; }
  };

  dense_ffn(index_t width, index_t hidden) : bank_(1, width, hidden) {}

  index_t inputs() const { return bank_.inputs(); }
  index_t experts() const { return 1; }

  void forward(sluice::tokens_in<float> x, sluice::tokens_out<float> y, tape& t, const context& c) const {
    t.offsets = {0, x.rows()};
    t.x = x;
    t.call = c;
    bank_.forward(x, t.offsets, y, t.bank, c.executor);
  }
  void backward(sluice::tokens_in<float> dy, sluice::tokens_out<float> dx, tape& t) {
    bank_.backward(t.x, t.offsets, dy, dx, t.bank, t.call.executor);
  }
  void after_step(tape&) {}

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("ffn", self.bank_);
  }

private:
  sluice::expert_bank<sluice::ffn<float>> bank_;
};

}  // namespace digits
