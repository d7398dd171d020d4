/// A mixture that thinks again: the layer runs R times, and its router remembers what it thought (recurrent routing).
///
///   u_1 = x,  h_0 = 0;    round r = 1 .. R:
///   h_r = GRU(u_r, h_{r-1});  o_r = experts chosen and weighed by h_r, on u_r;  u_{r+1} = x + o_r
///   y = o_R
///
///   using router = top_k_router<float, dynamic, dynamic, recurrent_gate<float>>;
///   recurrent_layer layer{moe_layer{router{recurrent_gate<float>(64, 8, 16), {.top_k = 2}}, experts}, {.rounds = 3}};
///
/// The layer's router has a gate/recurrent.hpp as its gate; a round hands its state to the next one as
/// context.features, and backward goes through all rounds. Round r draws from context.for_layer(r). Losses of the
/// rounds add up: give them 1/R of the coefficient for their mean. With one round it is the layer whose gate starts
/// from 0. The layer needs D' = D.
///
/// This is our reading of GRAPHMOE (Tang et al. 2025, arXiv:2501.07890), of which the abstract was at hand: experts as
/// nodes that hear of each other through a virtual node, in rounds of routing with a recurrent cell. Which cell, how
/// many rounds, and how the virtual node enters are not in it; the name graph_moe stays free for its exact form. There
/// experts are low-rank ones beside a frozen map: adapted_layer{base, recurrent_layer{...}} (adapter/adapted.hpp).
/// Padding gets zero, a token with NaN gets NaN; causal if the layer is.
#pragma once

#include <sluice/layer/call_checks.hpp>
#include <sluice/layer/mixture_layer.hpp>

#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct recurrent_options {
  index_t rounds = 2;
};

template <typename Layer>
class recurrent_layer {
  static_assert(explain_layer<Layer>());
  static_assert(
      requires(typename Layer::tape & t) { t.router.gate.state, t.router.gate.dstate, t.router.gate.dprevious; },
      "sluice: recurrent_layer needs a layer whose router has a recurrent gate (gate/recurrent.hpp)");

public:
  using scalar = typename Layer::scalar;
  using context_type = typename Layer::context_type;
  static constexpr bool causal = is_causal<Layer>;
  static constexpr bool mixes_tokens = is_token_mixer<Layer>;

  struct workspace {
    typename Layer::workspace layer;
    matrix_buffer<scalar> u, state;
  };
  struct tape {
    std::vector<typename Layer::tape> rounds;
    matrix_buffer<scalar> u, dy, du;
    detail::forward_record record;
    index_t tokens = 0;

    scalar loss() const {
      scalar sum = 0;
      for (const auto& round : rounds) sum += round.loss();
      return sum;
    }
  };

  /// Throws std::invalid_argument unless rounds >= 1 and the layer maps D to D.
  explicit recurrent_layer(Layer layer, recurrent_options o = {}) : layer_(std::move(layer)), rounds_(o.rounds) {
    if (rounds_ < 1) throw_invalid("recurrent_layer needs a round at least, not ", rounds_);
    if (layer_.inputs() != layer_.outputs())
      throw_invalid("recurrent_layer needs a layer that gives what it reads, not ", layer_.inputs(), " -> ",
                    layer_.outputs());
  }

  index_t inputs() const noexcept { return layer_.inputs(); }
  index_t outputs() const noexcept { return layer_.outputs(); }
  index_t experts() const noexcept { return layer_.experts(); }
  index_t rounds() const noexcept { return rounds_; }

  /// Inference: y [T,D] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context = {}) const {
    detail::check_forward<scalar>({inputs(), outputs()}, x, y, context);
    ws.state.clear();
    run(x, y, ws.u, context, [&](index_t round, tokens_in<scalar> u, tokens_out<scalar> o, context_type& own) {
      if (round > 0) ws.state = ws.layer.router.gate.state;  // the call writes over it
      if (round > 0) own.features = {ws.state.data(), ws.state.rows(), ws.state.cols()};
      layer_.forward(u, o, ws.layer, own);
    });
  }
  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  /// What the context refers to must live until backward has returned.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context) const {
    detail::check_forward<scalar>({inputs(), outputs()}, x, y, context);
    t.record.forget();
    if (static_cast<index_t>(t.rounds.size()) != rounds_) t.rounds.resize(as_size(rounds_));
    run(x, y, t.u, context, [&](index_t round, tokens_in<scalar> u, tokens_out<scalar> o, context_type& own) {
      if (round > 0) {
        const auto& state = t.rounds[as_size(round - 1)].router.gate.state;
        own.features = {state.data(), state.rows(), state.cols()};
      }
      layer_.forward(u, o, t.rounds[as_size(round)], own);
    });
    t.tokens = x.rows();
    t.record.keep(this);
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) requires TrainableLayer<Layer> {
    t.record.validate(this);
    detail::check_backward<scalar>({inputs(), outputs()}, dy, dx, t.tokens);
    dx.setZero();
    t.dy.resize(dy.rows(), dy.cols());
    t.du.resize(dx.rows(), dx.cols());
    t.dy.map() = dy;
    for (index_t round = rounds_ - 1; round >= 0; --round) {
      auto& own = t.rounds[as_size(round)];
      own.router.gate.dstate.clear();
      if (round + 1 < rounds_) own.router.gate.dstate = t.rounds[as_size(round + 1)].router.gate.dprevious;
      layer_.backward(t.dy.map(), t.du.map(), own);
      dx += t.du.map();  // u = x + o of the round before
      t.dy.map() = t.du.map();
    }
  }
  detail::refused backward(tokens_in<scalar>, tokens_out<scalar>, tape&) requires(!TrainableLayer<Layer>) {
    static_assert(explain_training());
    return {};
  }
  static consteval bool explain_training() { return explain_trainable_layer<Layer>(); }

  void after_step(tape& t) {
    for (auto& round : t.rounds) layer_.after_step(round);
  }

  template <typename Storage>
  auto stored_as(const auto&... format) const {
    auto layer = layer_.template stored_as<Storage>(format...);
    return recurrent_layer<decltype(layer)>(std::move(layer), {.rounds = rounds_});
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t own = rows * inputs() * static_cast<index_t>(sizeof(scalar)) * (training ? 3 : 1);
    return own + layer_.workspace_bytes(rows, training) * (training ? rounds_ : 1);
  }

  Layer& layer() noexcept { return layer_; }
  const Layer& layer() const noexcept { return layer_; }
  decltype(auto) router() noexcept { return layer_.router(); }
  decltype(auto) bank() noexcept { return layer_.bank(); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("layer", self.layer_);
  }

private:
  /// call(round, u, o, context) for every round; y may be x.
  template <typename Call>
  void run(tokens_in<scalar> x, tokens_out<scalar> y, matrix_buffer<scalar>& u, const context_type& context,
           Call&& call) const {
    const bool in_place = x.data() == y.data();
    u.resize((in_place ? 2 : 1) * x.rows(), x.cols());
    auto now = u.map().topRows(x.rows());
    now = x;
    if (in_place) u.map().bottomRows(x.rows()) = x;
    for (index_t round = 0; round < rounds_; ++round) {
      context_type own = context.for_layer(round);
      if (round > 0) {
        if (in_place)
          now = u.map().bottomRows(x.rows()) + y;
        else
          now = x + y;
      }
      // Padding has no output to add; what it holds stays out of every round alike.
      call(round, now, y, own);
    }
  }

  Layer layer_;
  index_t rounds_;
};

}  // namespace sluice::inline SLUICE_ISA
