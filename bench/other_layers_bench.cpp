// Layers that are not a mixture of networks a token, forward: experts merged into one, experts on images, attention of
// which a token has some heads, and attention to an encoder.
#include <sluice/attention/cross_attention.hpp>
#include <sluice/attention/selective_attention.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/images/convolution.hpp>
#include <sluice/layer/merged/merged_layer.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include <string>
#include <utility>
#include <vector>

#include "forward_case.hpp"

namespace bench {

namespace {

template <typename Layer>
void time_layer(session& s, const std::string& name, Layer layer, index_t tokens, const work& done, int threads,
                const sluice::routing_context<float>& context = {}) {
  const std::string title = forward_title(name, tokens, threads);
  if (!s.wants(title)) return;
  sluice::initialize(layer, 81);
  race_layer(s, title, forward_record(name, threads, done), random_batches(tokens, layer.inputs(), 82), layer, context);
}

/// Every sequence adds up all experts: they are read once, what becomes of them is written and read.
void merged_case(session& s, index_t D, index_t H, index_t experts, index_t tokens, index_t length, int threads) {
  sluice::expert_bank<sluice::ffn<float, sluice::silu>> bank{experts, D, H};
  const double numbers = static_cast<double>(sluice::parameter_count(bank)) / static_cast<double>(experts);
  const auto sequences = static_cast<double>(tokens / length), merged = static_cast<double>(experts);
  const work done{2 * numbers * (static_cast<double>(tokens) + sequences * merged),
                  4 * numbers * (merged + 2 * sequences)};
  std::vector<index_t> borders;
  for (index_t t = 0; t <= tokens; t += length) borders.push_back(t);
  sluice::routing_context<float> context;
  context.groups = borders;
  time_layer(s, "other_merged",
             sluice::merged_layer{sluice::moe_layer{sluice::dense_softmax_router<float>{D, experts}, std::move(bank)}},
             tokens, done, threads, context);
}

/// Two of the experts an image. Images are read once, outputs read and written.
void convolution_case(session& s, const sluice::image_shape& image, index_t channels, index_t experts, index_t tokens,
                      int threads) {
  constexpr index_t top_k = 2;
  const sluice::convolution_expert<float> filters(image, channels, sluice::window_shape::square(3, 1, 1));
  const auto weights = static_cast<double>(sluice::parameter_count(filters)), rows = static_cast<double>(tokens);
  const auto positions = static_cast<double>(filters.windows().count());
  const work done{2 * weights * positions * rows * static_cast<double>(top_k),
                  4 * (weights * static_cast<double>(experts) + rows * static_cast<double>(filters.inputs()) +
                       2 * rows * static_cast<double>(filters.outputs()))};
  time_layer(s, "other_convolution",
             sluice::moe_layer{sluice::top_k_router<float>{filters.inputs(), experts, {.top_k = top_k}},
                               sluice::expert_bank<sluice::convolution_expert<float>>(experts, filters)},
             tokens, done, threads);
}

/// Half of the heads a token, over one sequence; pairs are counted as if heads had equally many tokens, which is the
/// least.
void selective_case(session& s, index_t D, index_t heads, index_t tokens, int threads) {
  const index_t top_k = heads / 2, width = D / heads;
  const auto rows = static_cast<double>(tokens * top_k), own = rows / static_cast<double>(heads),
             maps = static_cast<double>(4 * D * width);
  const work done{2 * rows * maps + 2 * rows * (own + 1) * static_cast<double>(width),
                  4 * static_cast<double>(heads) * maps};
  time_layer(s, "other_selective_attention",
             sluice::selective_attention{sluice::head_router{sluice::top_k_router<float>{D, heads, {.top_k = top_k}}},
                                         {.head_width = width}},
             tokens, done, threads);
}

void cross_case(session& s, index_t D, index_t heads, index_t source, index_t seen, index_t tokens, int threads) {
  const auto rows = static_cast<double>(tokens), keys = static_cast<double>(seen), width = static_cast<double>(D),
             wide = static_cast<double>(source);
  const work done{4 * rows * width * width + 4 * keys * wide * width + 4 * rows * keys * width,
                  4 * (2 * width * width + 2 * wide * width + keys * wide)};
  const token_rows states = random_tokens(seen, source, 83);
  const sluice::encoder_states<float> encoder{.rows = states};
  sluice::routing_context<float> context;
  context.encoders = {&encoder, 1};
  time_layer(s, "other_cross_attention", sluice::cross_attention<float>{D, {.source = source, .heads = heads}}, tokens,
             done, threads, context);
}

}  // namespace

void other_layer_cases(session& s) {
  const auto run = [&](int threads) {
    if (s.asked.smoke) {
      merged_case(s, 24, 8, 4, 16, 4, threads);
      convolution_case(s, {2, 6, 6}, 3, 4, 4, threads);
      selective_case(s, 32, 4, 16, threads);
      cross_case(s, 32, 4, 24, 10, 16, threads);
    } else {
      merged_case(s, 768, 64, 8, 512, 64, threads);
      convolution_case(s, {64, 16, 16}, 64, 8, 32, threads);
      selective_case(s, 512, 8, 512, threads);
      cross_case(s, 512, 8, 1024, 576, 512, threads);
    }
  };
  run(s.asked.threads);
  if (s.asked.threads > 1 && !s.asked.quick) run(1);
}

}  // namespace bench
