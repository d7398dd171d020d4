/// A byte-level transformer: bytes go in, the odds of each next byte come out.
///
///   x = embedding(ids);   x = feed_forward_i(attention_i(x)) for every block, both with norm and residual inside;
///   logits = head(norm(x))
///
/// Blocks are of any layers (part.hpp). A model of fewer blocks than `depth` goes through them again and again
/// (MoEUT's shared layers). It holds the memory of its calls: one object a thread.
#pragma once

#include <sluice/layer/embedding.hpp>
#include <sluice/layer/linear.hpp>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "part.hpp"
#include "text.hpp"

namespace language_model {

/// What any kind of model has to keep to.
struct sizes {
  index_t width = 64;
  index_t depth = 2;     ///< blocks that a token goes through
  index_t length = 128;  ///< bytes that it sees
};

struct block {
  part attention, feed_forward;

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("attention", self.attention);
    visit("feed_forward", self.feed_forward);
  }
};

class transformer {
public:
  transformer(const sizes& s, std::vector<block> blocks)
      : size_(s),
        depth_(static_cast<std::size_t>(s.depth)),
        embedding_(byte_values, s.width),
        blocks_(std::move(blocks)),
        head_(sluice::linear_layer<float>{s.width, byte_values}, sluice::rms_norm<float>{s.width}),
        x_(2 * depth_ + 1) {
    for (block& b : blocks_)
      for (part* p : {&b.attention, &b.feed_forward}) p->set_uses((depth_ + blocks_.size() - 1) / blocks_.size());
  }

  const sizes& size() const { return size_; }

  /// logits [T, 256] for the bytes in context.token_ids; windows are its sequences. Keeps what backward needs if
  /// context.training.
  void forward(sluice::tokens_out<float> logits, const context& c) {
    const index_t tokens = logits.rows(), width = embedding_.outputs();
    for (auto& x : x_) x.resize(tokens, width);
    if (c.training)
      embedding_.forward(sluice::no_inputs<float>(tokens), x_[0].map(), embedding_tape_, c);
    else
      embedding_.forward(sluice::no_inputs<float>(tokens), x_[0].map(), embedding_workspace_, c);
    for (std::size_t i = 0; i < depth_; ++i) {
      block& b = of(i);
      const auto place = static_cast<index_t>(2 * i);
      b.attention.forward(x_[2 * i].map(), x_[2 * i + 1].map(), i / blocks_.size(), c.for_layer(place));
      b.feed_forward.forward(x_[2 * i + 1].map(), x_[2 * i + 2].map(), i / blocks_.size(), c.for_layer(place + 1));
    }
    if (c.training)
      head_.forward(x_.back().map(), logits, head_tape_, c);
    else
      head_.forward(x_.back().map(), logits, head_workspace_, c);
  }

  void backward(sluice::tokens_in<float> dlogits) {
    dx_.resize(dlogits.rows(), embedding_.outputs());
    dbetween_.resize(dlogits.rows(), embedding_.outputs());
    head_.backward(dlogits, dx_.map(), head_tape_);
    for (std::size_t i = depth_; i-- > 0;) {
      of(i).feed_forward.backward(dx_.map(), dbetween_.map(), i / blocks_.size());
      of(i).attention.backward(dbetween_.map(), dx_.map(), i / blocks_.size());
    }
    embedding_.backward(dx_.map(), embedding_tape_);
  }

  void after_step() {
    for (block& b : blocks_) {
      b.attention.after_step();
      b.feed_forward.after_step();
    }
  }

  /// What a byte costs, as the last inference was routed; without the embedding, which is only looked up.
  cost active() const {
    cost sum{static_cast<double>(sluice::parameter_count(head_))};
    for (std::size_t i = 0; i < depth_; ++i) {
      const block& b = blocks_[i % blocks_.size()];
      sum = sum + b.attention.active() + b.feed_forward.active();
    }
    return sum;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("embedding", self.embedding_);
    for (std::size_t i = 0; i < self.blocks_.size(); ++i) visit("blocks." + std::to_string(i), self.blocks_[i]);
    visit("head", self.head_);
  }

private:
  using embedding = sluice::embedding_layer<float>;
  using head = sluice::normalized_layer<sluice::linear_layer<float>, sluice::rms_norm<float>>;

  block& of(std::size_t place) { return blocks_[place % blocks_.size()]; }

  sizes size_;
  std::size_t depth_;
  embedding embedding_;
  std::vector<block> blocks_;
  head head_;

  embedding::tape embedding_tape_;
  embedding::workspace embedding_workspace_;
  head::tape head_tape_;
  head::workspace head_workspace_;
  std::vector<sluice::matrix_buffer<float>> x_;  ///< between the parts
  sluice::matrix_buffer<float> dx_, dbetween_;
};

}  // namespace language_model
