/// Layers that take turns, round after round: a deep stack with the parameters of a shallow one.
///
///   z_0 = x,   z_i = layer_(i mod G)(z_(i-1)) counted from 0,   y = z_(G R)              G layers, R rounds
///
///   repeated_layers stack{std::vector{block, block}, {.rounds = 8}};                 sixteen deep, two blocks to learn
///
/// The gradient of a parameter is the sum over the rounds. Each of the G R applications has a tape of its own,
/// tape.rounds[i], and draws of its own, context.for_layer(i). Parameters are visited once, as "0....", "1....". The
/// losses of all applications add up: give them 1/R of the coefficient for their mean, or evaluate one over all rounds
/// (layer/depth/loss_over_rounds.hpp). With one round it is a stack of a length known at run time. The layers map D to
/// D; they may mix tokens, and the stack is causal if they are. Padding, NaN, threads and bits are their affair.
/// Dehghani et al. 2019 (Universal Transformers), arXiv:1807.03819; Csordas et al. 2024 (MoEUT: a group of two to six
/// layers), arXiv:2405.16039.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/layer/call_checks.hpp>
#include <sluice/layer/mixture_layer.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct repeated_options {
  index_t rounds = 2;
};

template <typename Layer>
class repeated_layers {
  static_assert(explain_layer<Layer>());

public:
  using scalar = typename Layer::scalar;
  using context_type = typename Layer::context_type;
  static constexpr bool causal = is_causal<Layer>;
  static constexpr bool mixes_tokens = is_token_mixer<Layer>;

  struct workspace {
    std::vector<typename Layer::workspace> rounds;  ///< one a layer: a later round needs nothing of an earlier one
    std::array<matrix_buffer<scalar>, 2> between;
  };
  struct tape {
    std::vector<typename Layer::tape> rounds;
    std::array<matrix_buffer<scalar>, 2> between;
    std::array<matrix_buffer<scalar>, 2> dbetween;
    detail::forward_record record;

    scalar loss() const {
      scalar sum = 0;
      for (const auto& one : rounds) sum += one.loss();
      return sum;
    }
  };

  /// Throws std::invalid_argument unless there are layers, all of one width in and out, and rounds >= 1.
  explicit repeated_layers(std::vector<Layer> layers, repeated_options o = {})
      : layers_(std::move(layers)), rounds_(o.rounds) {
    if (layers_.empty() || rounds_ < 1)
      throw_invalid("repeated_layers needs a layer and a round at least, not ", layers_.size(), " and ", rounds_);
    for (const Layer& one : layers_)
      if (one.inputs() != inputs() || one.outputs() != inputs())
        throw_invalid("repeated_layers needs layers that map ", inputs(), " -> ", inputs(), ", not ", one.inputs(),
                      " -> ", one.outputs());
  }

  index_t inputs() const noexcept { return layers_.front().inputs(); }
  index_t outputs() const noexcept { return inputs(); }
  index_t rounds() const noexcept { return rounds_; }
  /// G: how many layers there are.
  index_t layers() const noexcept { return static_cast<index_t>(layers_.size()); }
  /// G R: how often one is applied.
  index_t depth() const noexcept { return layers() * rounds_; }
  Layer& layer(index_t g) noexcept { return layers_[as_size(g)]; }
  const Layer& layer(index_t g) const noexcept { return layers_[as_size(g)]; }

  /// Inference: y [T,D] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context = {}) const {
    ws.rounds.resize(layers_.size());
    run(x, y, ws, context);
  }

  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  /// What the context refers to must live until backward has returned.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context) const {
    t.record.forget();
    t.rounds.resize(as_size(depth()));
    run(x, y, t, context);
    t.record.keep(this);
  }

  /// Inference of tokens that continue the sequences of caches: one for every application of a layer that uses such, in
  /// order. Throws std::invalid_argument if there are not as many.
  template <typename Cache>
    requires CanContinue<Layer, Cache>
  void forward_cached(tokens_in<scalar> x, tokens_out<scalar> y, std::span<Cache> caches, workspace& ws,
                      const context_type& context = {}) const {
    const auto uses_cache = [](const Layer& one) {
      if constexpr (requires { one.template continues<Cache>(); })
        return one.template continues<Cache>();
      else
        return true;
    };
    const index_t needed = rounds_ * std::count_if(layers_.begin(), layers_.end(), uses_cache);
    if (needed != static_cast<index_t>(caches.size()))
      throw_invalid("of the ", depth(), " applications of layers ", needed, " use a cache; there are ", caches.size());
    ws.rounds.resize(layers_.size());
    Cache* next = caches.data();
    run(x, y, ws, context,
        [&](const Layer& one, tokens_in<scalar> from, tokens_out<scalar> to, auto& own, const context_type& its) {
          if (uses_cache(one))
            one.forward_cached(from, to, *next++, own, its);
          else
            one.forward(from, to, own, its);
        });
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) requires TrainableLayer<Layer> {
    t.record.validate(this);
    detail::check_backward<scalar>({inputs(), outputs()}, dy, dx, dy.rows());  // the layers know the T of their calls
    backward_of(depth() - 1, dy, dx, t);
  }
  detail::refused backward(tokens_in<scalar>, tokens_out<scalar>, tape&) requires(!TrainableLayer<Layer>) {
    static_assert(explain_training());
    return {};
  }
  static consteval bool explain_training() { return explain_trainable_layer<Layer>(); }

  void after_step(tape& t) {
    for (std::size_t i = 0; i < t.rounds.size(); ++i) layers_[i % layers_.size()].after_step(t.rounds[i]);
  }

  /// The same layers with the weights of their experts rounded to another storage, for inference.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    using other = decltype(layers_.front().template stored_as<Storage>(format...));
    std::vector<other> stored;
    stored.reserve(layers_.size());
    for (const Layer& one : layers_) stored.push_back(one.template stored_as<Storage>(format...));
    return repeated_layers<other>(std::move(stored), {.rounds = rounds_});
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    index_t bytes = (training ? 4 : 2) * rows * inputs() * static_cast<index_t>(sizeof(scalar));
    for (const Layer& one : layers_) bytes += one.workspace_bytes(rows, training) * (training ? rounds_ : 1);
    return bytes;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Layer>)
      for (std::size_t g = 0; g < self.layers_.size(); ++g) visit(std::to_string(g), self.layers_[g]);
  }

private:
  template <typename Memory>
  void run(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    run(x, y, m, context,
        [](const Layer& one, tokens_in<scalar> from, tokens_out<scalar> to, auto& own, const context_type& its) {
          one.forward(from, to, own, its);
        });
  }
  template <typename Memory, typename Apply>
  void run(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Apply&& apply) const {
    detail::check_forward<scalar>({inputs(), outputs()}, x, y, context);
    for (auto& between : m.between) between.resize(depth() > 1 ? x.rows() : 0, inputs());
    const auto step = [&](index_t i, tokens_in<scalar> from, tokens_out<scalar> to) {
      apply(layer(i % layers()), from, to, m.rounds[as_size(i) % m.rounds.size()], context.for_layer(i));
    };
    if (depth() == 1) return step(0, x, y);
    step(0, x, m.between[0].map());
    for (index_t i = 1; i + 1 < depth(); ++i)
      step(i, m.between[as_size(i + 1) % 2].map(), m.between[as_size(i) % 2].map());
    step(depth() - 1, m.between[as_size(depth()) % 2].map(), y);
  }

  void backward_of(index_t i, tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    if (i == 0) return layer(0).backward(dy, dx, t.rounds.front());
    matrix_buffer<scalar>& before = t.dbetween[as_size(i) % 2];
    before.resize(dy.rows(), inputs());
    layer(i % layers()).backward(dy, before.map(), t.rounds[as_size(i)]);
    backward_of(i - 1, before.map(), dx, t);
  }

  std::vector<Layer> layers_;
  index_t rounds_;
};

}  // namespace sluice::inline SLUICE_ISA
