/// BlackMamba: a stack in which Mamba's mixers and mixtures of experts take turns, as a list of codes says.
///
///   "r"        x <- x + mamba(norm(x))                  "r1" or "rn"   x <- x + mamba(norm(x)) + mlp(norm'(x))
///   "1"        x <- x + mlp(norm(x))                    "n"            x <- x + mixture of n experts(norm(x))
///
///   auto stack = make_blackmamba<float>({"r", "8", "r", "8"}, {.width = 1472});        initialize(stack, seed);
///   stack.forward(x, y, tape, {.training = true, .sequences = borders});               stack.backward(dy, dx, tape);
///   auto caches = make_blackmamba_caches(stack, sequences);    // for inference token by token: one a mixer
///   stack.forward_cached(x, y, std::span(caches), workspace, {.sequences = one_each});
///   auto gated = make_blackmamba<float, gated_ffn<float, gelu>>(codes, {.width = 1472, .hidden = 3872});
///
/// The norms are RMS norms. Routers take one expert, in training by Sinkhorn couplings, else the best, and weigh by its
/// sigmoid (sinkhorn_router_options::blackmamba). An MLP and its experts are alike: two layers with GELU, or gated with
/// the activation on the first half. The stack is `repeated_layers` with one round of `either_layer`s, whose promises
/// are its own; stack.layer(i).visit(f) gives f a block. Weights begin normal with deviation 0.02, those that write to
/// the stream with 0.02 / sqrt(2 layers), but routers' and what layer/state_space/state_space_weights.hpp sets apart.
/// The norm behind the last layer is not part of it: layer/output_normalized.hpp. In the released code only the last
/// digit of a code counts, here all do. Anthony et al. 2024, arXiv:2402.01771.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/beside.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/depth/either.hpp>
#include <sluice/layer/depth/repeated.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/state_space/state_space_mixer.hpp>
#include <sluice/router/assigned/sinkhorn.hpp>

#include <cmath>
#include <span>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct blackmamba_options {
  index_t width = 0;   ///< D
  index_t hidden = 0;  ///< of MLPs and experts; 0: 4 D
  bool bias = true;    ///< of MLPs, experts and the mixers' outer maps
  double epsilon = 1e-5;
  double deviation = 0.02;
  state_space_options mixer{};  ///< sizes; bias and deviations are those above
};

/// The parts of a stack as types; Expert is what MLPs are, too.
template <FloatOrDouble Scalar, typename Expert = ffn<Scalar, gelu>>
struct blackmamba_parts {
  template <typename Layer>
  using normed = normalized_layer<Layer, rms_norm<Scalar>>;
  using mixer = normed<state_space_mixer<Scalar>>;
  using mlp = normed<dense_layer<Expert>>;
  using mixture = normed<moe_layer<sinkhorn_router<Scalar>, expert_bank<Expert>>>;

  using mixer_block = residual_layer<mixer>;
  using mlp_block = residual_layer<mlp>;
  using mixture_block = residual_layer<mixture>;
  using mlp_beside_mixer = residual_layer<beside_layer<mlp, mixer>>;
  using mixture_beside_mixer = residual_layer<beside_layer<mixture, mixer>>;
  using block = either_layer<mixer_block, mlp_block, mixture_block, mlp_beside_mixer, mixture_beside_mixer>;
};

template <FloatOrDouble Scalar, typename Expert = ffn<Scalar, gelu>>
using blackmamba = repeated_layers<typename blackmamba_parts<Scalar, Expert>::block>;

namespace detail {

struct blackmamba_code {
  bool mixer = false;
  index_t experts = 0;  ///< 0: neither MLP nor mixture
};

/// Throws std::invalid_argument with the code, the layer and the place in the code.
inline blackmamba_code read_blackmamba_code(const std::string& code, std::size_t layer) {
  constexpr index_t most = 1 << 20;
  blackmamba_code read;
  std::size_t place = 0;
  const auto refuse = [&] {
    throw_invalid("layer ", layer, " of the stack has the code \"", code, "\", which is wrong at position ", place,
                  ": a code is \"r\", a number of experts from 1 on, or both, as \"r8\"");
  };
  if (place < code.size() && code[place] == 'r') read.mixer = true, ++place;
  if (place == code.size() && !read.mixer) refuse();
  for (; place < code.size(); ++place) {
    if (code[place] < '0' || code[place] > '9' || (read.experts == 0 && code[place] == '0')) refuse();
    read.experts = 10 * read.experts + (code[place] - '0');
    if (read.experts > most) refuse();
  }
  return read;
}

}  // namespace detail

/// Throws std::invalid_argument if there is no code, a code is none, or the parts refuse the sizes.
template <FloatOrDouble Scalar, typename Expert = ffn<Scalar, gelu>>
blackmamba<Scalar, Expert> make_blackmamba(const std::vector<std::string>& codes, const blackmamba_options& o) {
  using parts = blackmamba_parts<Scalar, Expert>;
  if (codes.empty() || o.width < 1 || o.hidden < 0 || !is_at_least(o.deviation, 0))
    throw_invalid("blackmamba needs a code a layer, D >= 1, and nothing below 0, not ", codes.size(), " codes, D ",
                  o.width, ", H ", o.hidden, ", deviation ", o.deviation);
  const double writing = o.deviation / std::sqrt(2 * static_cast<double>(codes.size()));
  const index_t hidden = o.hidden == 0 ? 4 * o.width : o.hidden;
  const rms_norm<Scalar> norm(o.width, {.epsilon = static_cast<Scalar>(o.epsilon)});
  const auto expert = [&] {
    return Expert(o.width, hidden, {.bias = o.bias, .deviation = o.deviation, .output_deviation = writing});
  };
  const auto mixer = [&] {
    state_space_options sizes = o.mixer;
    sizes.bias = o.bias, sizes.deviation = o.deviation, sizes.output_deviation = writing;
    return typename parts::mixer(state_space_mixer<Scalar>(o.width, sizes), norm);
  };
  const auto mlp = [&] { return typename parts::mlp(dense_layer<Expert>(expert()), norm); };
  const auto mixture = [&](index_t experts) {
    return
        typename parts::mixture(moe_layer(sinkhorn_router<Scalar>(linear_gate<Scalar>(o.width, experts, {.bias = true}),
                                                                  sinkhorn_router_options::blackmamba()),
                                          expert_bank<Expert>(experts, expert())),
                                norm);
  };

  std::vector<typename parts::block> blocks;
  blocks.reserve(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const auto [mixes, experts] = detail::read_blackmamba_code(codes[i], i);
    if (experts == 0)
      blocks.emplace_back(residual_layer(mixer()));
    else if (experts == 1 && !mixes)
      blocks.emplace_back(residual_layer(mlp()));
    else if (experts == 1)
      blocks.emplace_back(residual_layer(beside_layer(mlp(), mixer())));
    else if (!mixes)
      blocks.emplace_back(residual_layer(mixture(experts)));
    else
      blocks.emplace_back(residual_layer(beside_layer(mixture(experts), mixer())));
  }
  return blackmamba<Scalar, Expert>(std::move(blocks), {.rounds = 1});
}

/// A cache for every mixer of the stack, in order.
template <typename Block>
std::vector<state_space_cache<typename Block::scalar>> make_blackmamba_caches(const repeated_layers<Block>& stack,
                                                                              index_t sequences) {
  std::vector<state_space_cache<typename Block::scalar>> caches;
  for (index_t i = 0; i < stack.layers(); ++i)
    stack.layer(i).visit([&](const auto& block) {
      if constexpr (requires { block.layer().other(); })
        caches.emplace_back(block.layer().other().layer(), sequences);
      else if constexpr (requires { block.layer().layer().weights(); })
        caches.emplace_back(block.layer().layer(), sequences);
    });
  return caches;
}

}  // namespace sluice::inline SLUICE_ISA
