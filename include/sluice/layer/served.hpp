/// A layer that serves many threads, and may be replaced while it does: new weights without a stop.
///
///   served_layer served{std::move(layer)};
///   // in every serving thread                                          // in the thread that brings new weights
///   decltype(served)::workspace workspace;
///   served.forward(x, y, workspace);                                    served.replace(std::move(better));
///
/// The weights are shared and const, the workspace is one a thread. A call computes with one set of weights from
/// beginning to end; calls that begin after replace has returned use the new ones. A warm call costs one atomic load
/// more than the layer's own, takes no lock and allocates nothing. The old weights are freed with the last workspace
/// that still refers to them: by the next call with it, or by workspace.let_go(). What a call throws, and where NaN
/// goes, is the layer's affair.
#pragma once

#include <sluice/layer/mixture_layer.hpp>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Layer>
class served_layer {
  static_assert(explain_layer<Layer>());

public:
  using scalar = typename Layer::scalar;
  using context_type = typename Layer::context_type;
  static constexpr bool causal = is_causal<Layer>;
  static constexpr bool mixes_tokens = is_token_mixer<Layer>;

  struct workspace {
    typename Layer::workspace layer;
    std::shared_ptr<const Layer> weights;  ///< what the last call computed with
    std::uint64_t version = 0;             ///< of these weights

    /// The weights are no longer held by this workspace. Its memory stays.
    void let_go() noexcept {
      weights.reset();
      version = 0;
    }
  };

  explicit served_layer(Layer layer) : served_layer(std::make_shared<const Layer>(std::move(layer))) {}
  /// Shares weights with others. Throws std::invalid_argument if there are none.
  explicit served_layer(std::shared_ptr<const Layer> layer) : current_(std::move(layer)) {
    if (!current_) throw_invalid("served_layer needs a layer");
    inputs_ = current_->inputs();
    outputs_ = current_->outputs();
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t outputs() const noexcept { return outputs_; }

  /// From any number of threads, each with a workspace of its own: y [T,D'] is overwritten.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context = {}) const {
    if (version_.load(std::memory_order_acquire) != ws.version) catch_up(ws);
    ws.weights->forward(x, y, ws.layer, context);
  }

  /// From any thread, while others call forward. Throws std::invalid_argument if the widths are not those of the layer
  /// before.
  void replace(Layer layer) { replace(std::make_shared<const Layer>(std::move(layer))); }
  void replace(std::shared_ptr<const Layer> layer) {
    if (!layer) throw_invalid("served_layer needs a layer");
    if (layer->inputs() != inputs_ || layer->outputs() != outputs_)
      throw_invalid("a layer ", inputs_, " -> ", outputs_, " cannot be replaced by one ", layer->inputs(), " -> ",
                    layer->outputs());
    const std::lock_guard lock(mutex_);
    current_.swap(layer);  // what was there is freed, if nobody uses it, after the lock
    version_.fetch_add(1, std::memory_order_release);
  }

  /// The weights that a call beginning now would use.
  std::shared_ptr<const Layer> current() const {
    const std::lock_guard lock(mutex_);
    return current_;
  }

private:
  void catch_up(workspace& ws) const {
    std::shared_ptr<const Layer> fresh;
    {
      const std::lock_guard lock(mutex_);
      fresh = current_;
      ws.version = version_.load(std::memory_order_relaxed);
    }
    ws.weights = std::move(fresh);  // may free the old ones, without the lock
  }

  mutable std::mutex mutex_;  // of current_, and of the pair that it makes with version_
  std::shared_ptr<const Layer> current_;
  std::atomic<std::uint64_t> version_{1};
  index_t inputs_ = 0;
  index_t outputs_ = 0;
};

template <typename Layer>
served_layer(std::shared_ptr<Layer>) -> served_layer<std::remove_const_t<Layer>>;

}  // namespace sluice::inline SLUICE_ISA
