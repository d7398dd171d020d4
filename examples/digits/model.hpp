/// The model: an image becomes tokens, the tokens go through a mixture-of-experts layer, their mean is classified.
///
///   image [64] -> N patches [P]      h[t] = patch[t] Wp^T + position[t] + image Wi^T     [N,D]
///                                    z    = mean over the tokens of h + mixture(h)       [D]
///                                    p    = softmax(z Wo^T + b)                          [classes]
///
/// The term of the whole image lets each token, and so the router, know what it is a part of. `Mixture` is a
/// sluice::moe_layer, or anything with its forward, backward and tape: sluice::dense_layer is the baseline.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/layer/linear.hpp>

#include <utility>
#include <vector>

#include "dataset.hpp"

namespace digits {

using sluice::index_t;
using context = sluice::routing_context<float>;

/// Some images, cut into tokens.
struct batch {
  row_matrix patches;           // [B*N, P], the tokens of an image are neighbours
  row_matrix images;            // [B, 64]
  std::vector<index_t> labels;  // [B]
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
    row_matrix dlogits, dmean, dy, dh, dpixels;
    sluice::linear_layer<float>::tape patch, image, head;
    typename Mixture::tape mixture;
  };

  classifier(patch_shape shape, Mixture mixture)
      : tokens_(tokens_per_image(shape)),
        patch_(token_width(shape), mixture.inputs(), {.bias = false}),
        image_(pixels_per_image, mixture.inputs(), {.bias = false}),
        position_({tokens_, mixture.inputs()}, sluice::parameter_role::vector, sluice::initial_values::normal(0.5)),
        head_(mixture.inputs(), classes),
        mixture_(std::move(mixture)) {}

  /// Leaves the logits [B, classes] in the tape.
  void forward(const batch& b, tape& t, const context& c) const {
    t.h.resize(b.patches.rows(), mixture_.inputs());
    t.y.resize(b.patches.rows(), mixture_.inputs());
    t.mean.resize(b.size(), mixture_.inputs());
    t.logits.resize(b.size(), classes);

    context per_image;  // a row an image: groups of tokens mean nothing there
    per_image.executor = c.executor;
    patch_.forward(b.patches, t.h, t.patch, c);
    image_.forward(b.images, t.mean, t.image, per_image);
    for (index_t i = 0; i < b.size(); ++i) {
      tokens_of(t.h, i) += position_.map();
      tokens_of(t.h, i).rowwise() += t.mean.row(i);
    }
    mixture_.forward(t.h, t.y, t.mixture, c);
    for (index_t i = 0; i < b.size(); ++i) t.mean.row(i) = (tokens_of(t.h, i) + tokens_of(t.y, i)).colwise().mean();
    head_.forward(t.mean, t.logits, t.head, per_image);
  }

  /// Adds the gradients for t.dlogits, the gradient of the loss with respect to the logits of the last forward call.
  void backward(const batch& b, tape& t) {
    t.dmean.resize(b.size(), mixture_.inputs());
    head_.backward(t.dlogits, t.dmean, t.head);

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
    t.dpixels.resize(b.patches.rows(), b.patches.cols());
    patch_.backward(t.dh, t.dpixels, t.patch);
    t.dpixels.resize(b.images.rows(), b.images.cols());
    image_.backward(t.dmean, t.dpixels, t.image);
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
  }

private:
  template <typename Matrix>
  auto tokens_of(Matrix& m, index_t image) const {
    return m.middleRows(image * tokens_, tokens_);
  }

  index_t tokens_;
  sluice::linear_layer<float> patch_, image_;
  sluice::parameter<float> position_;
  sluice::linear_layer<float> head_;
  Mixture mixture_;
};

}  // namespace digits
