/// A trained layer whose sizes are compile-time constants and whose numbers all lie inside the object: no heap, no
/// exception.
///
///   x [t,D] -> y [t,D], t <= T:   top-k routing among E experts of hidden width H, K a token, as moe_layer computes it
///
///   using layer_type = sluice::fixed_moe_layer<float, 16, 32, 8, 2, 64>;   // D H E K T; SwiGLU experts
///   static layer_type layer;   static layer_type::workspace workspace;     // large: not on a small stack
///   layer.assign(trained);                                                 // a moe_layer of top_k_router and expert_bank
///   ok = layer.forward(x, y, workspace);                                   // in the audio callback
///
/// It runs the kernels of moe_layer on the same numbers in the same order: outputs are equal bit for bit. Expert is an
/// ffn or a gated_ffn, in full or half precision, with or without biases; weights lie in panels as there. Every
/// weighting of top_k_router is there; its gate is linear, there is no capacity limit, and nothing is trained.
/// Calls allocate nothing and throw nothing; they use some 20 KB of stack. forward is const: threads share a layer,
/// each with a workspace of its own. The object is trivially copyable. It may be in static memory, a shared segment or
/// a member. NaN in a token or in its logits gives that token NaN. No tokens are fine. x and y may be the same memory.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// What an expert does between its maps, without its parameters.
template <typename Expert>
struct fixed_activation;

template <typename Scalar, typename Phi, typename Storage>
struct fixed_activation<ffn<Scalar, Phi, Storage>> {
  static fixed_activation of(const ffn<Scalar, Phi, Storage>&) { return {}; }
  kernel::simd<Scalar> value(const std::array<kernel::simd<Scalar>, 1>& z) const { return value_of<Phi, Scalar>(z[0]); }
};

template <typename Scalar, typename Phi, typename Storage>
struct fixed_activation<gated_ffn<Scalar, Phi, Storage>> {
  SLUICE_NO_UNIQUE_ADDRESS gating_of<Phi, Scalar> gating{};

  static fixed_activation of(const gated_ffn<Scalar, Phi, Storage>& expert) { return {expert.gating()}; }
  kernel::simd<Scalar> value(const std::array<kernel::simd<Scalar>, 2>& z) const { return gating.value(z[0], z[1]); }
};

/// One expert [D -> H -> D]: its maps in panels, its vectors padded to whole lanes.
template <typename Expert, index_t D, index_t H>
struct fixed_expert {
  using scalar = typename Expert::scalar;
  using storage = typename Expert::storage;
  static constexpr index_t lanes = kernel::simd_width<scalar>;
  static constexpr index_t maps = Expert::first_maps;

  static constexpr index_t panels(index_t outputs) { return (outputs + lanes - 1) / lanes; }
  template <index_t Outputs, index_t Inputs>
  struct map {
    static constexpr index_t bytes = panel_bytes<storage>(Inputs);
    alignas(64) std::array<std::byte, as_size(panels(Outputs) * bytes)> weights{};

    const std::byte* panel(index_t p) const noexcept { return weights.data() + p * bytes; }
    /// Panels 2q and 2q + 1; an odd last panel stands twice.
    kernel::streams<const std::byte*> pair(index_t q) const noexcept {
      return {panel(2 * q), panel((std::min)(2 * q + 1, panels(Outputs) - 1))};
    }
  };
  template <index_t Size>
  struct vector {
    alignas(64) std::array<scalar, as_size(panels(Size) * lanes)> numbers{};
    bool is_there = false;

    kernel::simd<scalar> at(index_t column) const noexcept { return kernel::load(numbers.data() + column); }
    kernel::simd<scalar> add_to(const kernel::simd<scalar>& z, index_t column) const noexcept {
      return is_there ? z + at(column) : z;
    }
  };

  std::array<map<H, D>, as_size(maps)> first;
  map<D, H> last;
  std::array<vector<H>, as_size(maps)> first_bias;
  vector<D> last_bias;
  vector<H> hidden_scale;
  SLUICE_NO_UNIQUE_ADDRESS fixed_activation<Expert> activation;

  static constexpr index_t first_pairs() { return maps == 2 ? panels(H) : (panels(H) + 1) / 2; }
  static constexpr index_t last_pairs() { return (panels(D) + 1) / 2; }
  kernel::streams<const std::byte*> first_pair(index_t q) const noexcept {
    if constexpr (maps == 2)
      return {first[0].panel(q), first[1].panel(q)};
    else
      return first[0].pair(q);
  }

  kernel::simd<scalar> activate(index_t column, std::array<kernel::simd<scalar>, as_size(maps)> z) const noexcept {
    for (std::size_t m = 0; m < as_size(maps); ++m) z[m] = first_bias[m].add_to(z[m], column);
    const kernel::simd<scalar> h = activation.value(z);
    return hidden_scale.is_there ? h * hidden_scale.at(column) : h;
  }

  void assign(const Expert& from) {
    activation = fixed_activation<Expert>::of(from);
    for (index_t m = 0; m < maps; ++m) copy_panels(from.first_map(static_cast<int>(m)), first[as_size(m)].weights);
    copy_panels(from.last_map(), last.weights);
    for (auto* bias : {&first_bias[0], &first_bias[as_size(maps) - 1], &hidden_scale}) bias->is_there = false;
    last_bias.is_there = false;
    Expert::visit_parameters(from, [&](std::string_view name, const auto& p) {
      if constexpr (requires { p.data(); }) {
        if (name == "gate_bias") copy_vector(p, first_bias[0]);
        if (name == "up_bias") copy_vector(p, first_bias[as_size(maps) - 1]);
        if (name == "down_bias") copy_vector(p, last_bias);
        if (name == "hidden_scale") copy_vector(p, hidden_scale);
      }
    });
  }

private:
  template <std::size_t N>
  static void copy_panels(const PanelledMap auto& from, std::array<std::byte, N>& to) {
    std::copy_n(from.panel(0), N, to.begin());
  }
  template <typename Parameter, typename Vector>
  static void copy_vector(const Parameter& from, Vector& to) {
    std::copy_n(from.data(), to.numbers.size(), to.numbers.begin());
    to.is_there = true;
  }
};

}  // namespace detail

template <FloatOrDouble Scalar, index_t D, index_t H, index_t E, index_t K, index_t T,
          MadeOfLinearMaps Expert = swiglu<Scalar>>
class fixed_moe_layer {
  static_assert(D >= 1 && H >= 1 && E >= 1 && T >= 1 && 1 <= K && K <= E,
                "sluice: fixed_moe_layer needs D, H, E, T >= 1 and 1 <= K <= E");
  using storage = typename Expert::storage;
  static_assert(detail::packs_numbers<storage> && std::is_empty_v<storage>,
                "sluice: fixed_moe_layer needs experts whose storage packs activations number by number");
  static_assert(shows_nan<linear_gate<Scalar>>);  // tokens that hold NaN are known by their logits
  using expert_type = detail::fixed_expert<Expert, D, H>;
  using packed = kernel::packed_rows<storage>;
  static constexpr index_t lanes = kernel::simd_width<Scalar>;
  static constexpr index_t padded(index_t width) { return (width + lanes - 1) / lanes * lanes; }

public:
  using scalar = Scalar;

  /// Scratch of a call. One a thread.
  struct workspace {
    alignas(64) std::array<Scalar, as_size(T * padded(D))> x;  ///< rows of one expert, packed
    alignas(64) std::array<Scalar, as_size(T * padded(H))> h;
    alignas(64) std::array<Scalar, as_size(T * D)> y;
    std::array<Scalar, as_size(T * E)> logits;
    std::array<Scalar, as_size(E)> scores;
    std::array<Scalar, as_size(2 * E)> scratch;
    std::array<index_t, as_size(T * K)> ids;      ///< no_expert where a token has none
    std::array<Scalar, as_size(T * K)> weights;
    std::array<index_t, as_size(E + 1)> offsets;  ///< rows of expert e: offsets[e] .. offsets[e+1]
    std::array<index_t, as_size(T * K)> row_token;
    std::array<Scalar, as_size(T * K)> row_weight;
  };

  /// All weights zero.
  fixed_moe_layer() = default;
  /// As assign.
  template <typename Layer>
    requires(!std::same_as<Layer, fixed_moe_layer>)
  explicit fixed_moe_layer(const Layer& trained) { assign(trained); }

  static constexpr index_t inputs() noexcept { return D; }
  static constexpr index_t outputs() noexcept { return D; }
  static constexpr index_t experts() noexcept { return E; }
  static constexpr index_t top_k() noexcept { return K; }
  static constexpr index_t most_tokens() noexcept { return T; }

  /// Takes over all that `trained` has learned. Throws std::invalid_argument if its sizes or its routing are others, or
  /// if nobody has set its parameters.
  template <index_t Experts, index_t TopK, typename Noise, typename... Losses>
  void assign(const moe_layer<top_k_router<Scalar, Experts, TopK, linear_gate<Scalar>, Noise, dropless>,
                              expert_bank<Expert>, Losses...>& trained) {
    const auto& router = trained.router();
    if (trained.inputs() != D || trained.outputs() != D || trained.experts() != E || router.top_k() != K)
      throw_invalid("fixed_moe_layer maps ", D, " numbers to as many, ", K, " of ", E,
                    " experts a token; the layer maps ", trained.inputs(), " to ", trained.outputs(), ", ",
                    router.top_k(), " of ", trained.experts());
    if (!(router.application() == weight_application<Scalar>()))
      throw_invalid("fixed_moe_layer weighs the outputs of experts only");
    for (index_t e = 0; e < E; ++e)
      if (const index_t width = trained.bank().expert(e).last_map().inputs(); width != H)
        throw_invalid("fixed_moe_layer holds experts of hidden width ", H, ", expert ", e, " is of width ", width);
    check_initialized(trained);
    const auto& rule = router.rule().settings();
    rule_ = softmax_rule<Scalar>({.top_k = K,
                                  .weights = rule.weights,
                                  .constant_weight = true,
                                  .smallest_sum = rule.smallest_sum,
                                  .added_to_sum = rule.added_to_sum,
                                  .scaling = rule.scaling,
                                  .groups = rule.groups});
    has_gate_bias_ = false;
    linear_gate<Scalar>::visit_parameters(router.gate(), [&](std::string_view name, const parameter<Scalar>& p) {
      const bool is_bias = name == "bias";
      has_gate_bias_ = has_gate_bias_ || is_bias;
      std::copy_n(p.data(), is_bias ? E : E * D, is_bias ? gate_bias_.data() : gate_.data());
    });
    for (index_t e = 0; e < E; ++e) experts_[as_size(e)].assign(trained.bank().expert(e));
  }

  /// y = layer(x); rows are tokens. False, and y as it was, unless x and y hold equally many whole tokens, T at most.
  [[nodiscard]] bool forward(std::span<const Scalar> x, std::span<Scalar> y, workspace& w) const noexcept {
    const index_t tokens = static_cast<index_t>(x.size()) / D;
    if (x.size() != y.size() || x.size() != as_size(tokens * D) || tokens > T) return false;
    route(x.data(), tokens, w);
    std::fill_n(w.y.data(), tokens * D, Scalar(0));
    for (index_t e = 0; e < E; ++e) run_expert(e, x.data(), w);
    for (index_t t = 0; t < tokens; ++t)
      if (any_nan(w.logits.data() + t * E, E)) std::fill_n(w.y.data() + t * D, D, quiet_nan<Scalar>());
    std::copy_n(w.y.data(), tokens * D, y.data());
    return true;
  }

private:
  void route(const Scalar* x, index_t tokens, workspace& w) const noexcept {
    kernel::multiply_nt(tokens, E, D, x, D, gate_.data(), D, w.logits.data(), E);
    const routing_context<Scalar> context;
    w.offsets.fill(0);
    for (index_t t = 0; t < tokens; ++t) {
      Scalar* logits = w.logits.data() + t * E;
      for (index_t e = 0; has_gate_bias_ && e < E; ++e) logits[e] += gate_bias_[as_size(e)];
      index_t* ids = w.ids.data() + t * K;
      std::fill_n(ids, K, no_expert);
      if (any_nan(logits, E)) continue;
      const choice_row<Scalar> row{{context, tokens, E, K}, t, logits, logits, w.scores.data(), w.scratch.data()};
      rule_.score(row, w.scores.data());
      const index_t count = rule_.choose(row, ids);
      rule_.weigh(row, {ids, as_size(count)}, w.weights.data() + t * K);
      for (index_t j = 0; j < count; ++j) ++w.offsets[as_size(ids[j] + 1)];
    }
    for (std::size_t e = 0; e < as_size(E); ++e) w.offsets[e + 1] += w.offsets[e];
    // Rows go where their expert's end; afterwards every offset has moved up to the next, and back.
    for (std::size_t i = 0; i < as_size(tokens * K); ++i) {
      if (w.ids[i] == no_expert) continue;
      const auto row = as_size(w.offsets[as_size(w.ids[i])]++);
      w.row_token[row] = static_cast<index_t>(i) / K;
      w.row_weight[row] = w.weights[i];
    }
    std::copy_backward(w.offsets.begin(), w.offsets.end() - 1, w.offsets.end());
    w.offsets[0] = 0;
  }

  void run_expert(index_t e, const Scalar* x, workspace& w) const noexcept {
    const expert_type& expert = experts_[as_size(e)];
    const index_t first_row = w.offsets[as_size(e)];
    const kernel::row_blocks rows(0, w.offsets[as_size(e) + 1] - first_row);
    const auto token = [&](index_t row) { return w.row_token[as_size(first_row + row)]; };
    const packed inputs{w.x.data(), nullptr, D, 0}, hidden{w.h.data(), nullptr, H, 0};
    for (index_t b = 0; b < rows.count(); ++b)
      kernel::pack_block(
          storage(), inputs, rows, b, [&](index_t row) { return x + token(row) * D; },
          [](index_t) { return Scalar(1); });

    multiply(
        inputs, rows, expert_type::first_pairs(), [&](index_t q) { return expert.first_pair(q); },
        [&](index_t b, index_t q, const auto& sums) {
          for (index_t i = 0; i < rows.size(b); ++i) {
            const auto z0 = kernel::load(sums[0] + i * lanes), z1 = kernel::load(sums[1] + i * lanes);
            const auto put = [&](index_t p, const auto& z) {
              kernel::store<Scalar>(hidden.panel(rows, b, i, p), expert.activate(p * lanes, z));
            };
            if constexpr (expert_type::maps == 2) {
              put(q, std::array{z0, z1});
            } else {
              put(2 * q, std::array{z0});
              if (2 * q + 1 < expert_type::panels(H)) put(2 * q + 1, std::array{z1});
            }
          }
        });

    multiply(
        hidden, rows, expert_type::last_pairs(), [&](index_t q) { return expert.last.pair(q); },
        [&](index_t b, index_t q, const auto& sums) {
          for (index_t i = 0; i < rows.size(b); ++i)
            for (std::size_t v = 0; v < kernel::tile_vectors; ++v)
              if (const index_t column = (q * kernel::tile_vectors + static_cast<index_t>(v)) * lanes; column < D) {
                const index_t row = rows.begin(b) + i;
                kernel::add_weighted(w.row_weight[as_size(first_row + row)],
                                     expert.last_bias.add_to(kernel::load(sums[v] + i * lanes), column), D - column,
                                     w.y.data() + token(row) * D + column);
              }
        });
  }

  template <typename PairOf, typename Epilogue>
  static void multiply(const packed& x, const kernel::row_blocks& rows, index_t pairs, const PairOf& pair_of,
                       const Epilogue& epilogue) noexcept {
    kernel::multiply_panels<storage>(
        storage(), x, rows, 0, pairs, [&](index_t q) { return pair_of((std::min)(q, pairs - 1)); }, epilogue);
  }

  alignas(64) std::array<Scalar, as_size(E * D)> gate_{};
  std::array<Scalar, as_size(E)> gate_bias_{};
  bool has_gate_bias_ = false;
  softmax_rule<Scalar> rule_{{.top_k = K, .constant_weight = true}};
  std::array<expert_type, as_size(E)> experts_{};
};

}  // namespace sluice::inline SLUICE_ISA
