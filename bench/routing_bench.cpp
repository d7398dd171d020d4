// What routing costs: the routers alone, one row each, and the share of a forward pass that is not the experts'.
#include <sluice/exec/thread_pool.hpp>
#include <sluice/expert/neuron_bank.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/assigned/balanced_assignment.hpp>
#include <sluice/router/assigned/sinkhorn.hpp>
#include <sluice/router/assigned/sparse_transport.hpp>
#include <sluice/router/every_expert/deep_moe.hpp>
#include <sluice/router/every_expert/dense.hpp>
#include <sluice/router/every_expert/dense_entmax.hpp>
#include <sluice/router/every_expert/dense_sigmoid.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/gumbel_softmax.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/experts_choose/expert_choice.hpp>
#include <sluice/router/experts_choose/expert_preferred.hpp>
#include <sluice/router/experts_choose/patch_level.hpp>
#include <sluice/router/experts_choose/predicted_choice.hpp>
#include <sluice/router/fixed/given.hpp>
#include <sluice/router/fixed/hash.hpp>
#include <sluice/router/fixed/random_partition.hpp>
#include <sluice/router/masked/id_mask.hpp>
#include <sluice/router/masked/modality.hpp>
#include <sluice/router/masked/offered.hpp>
#include <sluice/router/masked/per_sample.hpp>
#include <sluice/router/masked/prototypes.hpp>
#include <sluice/router/over_training/compete.hpp>
#include <sluice/router/over_training/dense_to_sparse.hpp>
#include <sluice/router/over_training/dselect_k.hpp>
#include <sluice/router/over_training/mean_active.hpp>
#include <sluice/router/over_training/scheduled_k.hpp>
#include <sluice/router/over_training/stable.hpp>
#include <sluice/router/residual_weights.hpp>
#include <sluice/router/threshold/dynmoe.hpp>
#include <sluice/router/threshold/relu.hpp>
#include <sluice/router/threshold/skip.hpp>
#include <sluice/router/threshold/top_p.hpp>
#include <sluice/router/tokens_choose/chosen_ranks.hpp>
#include <sluice/router/tokens_choose/drawn_tail.hpp>
#include <sluice/router/tokens_choose/gshard_top2.hpp>
#include <sluice/router/tokens_choose/importance_score.hpp>
#include <sluice/router/tokens_choose/position_share.hpp>
#include <sluice/router/tokens_choose/moe_plus_plus.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>
#include <sluice/router/tokens_choose/product_key.hpp>
#include <sluice/router/tokens_choose/score_weighted.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/sparse_mixer.hpp>
#include <sluice/router/tokens_choose/straight_through.hpp>
#include <sluice/router/tokens_choose/switch_top1.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/router/tokens_choose/tucker_key.hpp>
#include <sluice/router/universal_expert.hpp>

#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "model.hpp"
#include "session.hpp"
#include "workload.hpp"

namespace bench {

namespace {

using expert = sluice::swiglu<float>;

sluice::routing_context<float> context_with(sluice::thread_pool& pool) {
  sluice::routing_context<float> context;
  context.executor = pool;
  return context;
}

/// What a router is told besides the tokens and what goes with each of them.
struct told {
  bool training = false;
  bool previous_logits = false;
  index_t sample_width = 0;  ///< of the vector that stands for the batch, which is one sample
};

template <typename Router>
void time_router(session& s, const std::string& name, Router router, const told& more = {}) {
  const std::string title = "router " + name + " E=" + std::to_string(router.experts());
  if (!s.wants(title)) return;
  sluice::initialize(router, /*seed=*/5);
  sluice::thread_pool pool(s.asked.threads);
  const token_rows x = random_tokens(s.asked.smoke ? 4 : 512, router.inputs(), 31);
  std::vector<sluice::index_t> ids(static_cast<std::size_t>(x.rows()));
  std::iota(ids.begin(), ids.end(), sluice::index_t{0});
  sluice::matrix<sluice::index_t> experts(x.rows(), 1);
  std::vector<sluice::index_t> modalities(ids.size());
  for (sluice::index_t t = 0; t < x.rows(); ++t) {
    experts(t, 0) = t % router.experts();
    modalities[static_cast<std::size_t>(t)] = t % 2;
  }
  const std::vector<sluice::index_t> clusters(ids.size(), 0);
  const token_rows sample = random_tokens(1, more.sample_width, 33);
  const token_rows logits = random_tokens(more.previous_logits ? x.rows() : 0, router.experts(), 34);
  auto context = context_with(pool);
  context.training = more.training;
  context.token_ids = ids;
  context.expert_ids = experts;
  context.modality_ids = modalities;
  context.cluster_ids = clusters;
  if (sample.size() != 0) context.group_features = sample;
  if (logits.size() != 0) context.previous_logits = logits;
  typename Router::plan plan;
  typename Router::tape tape;
  const contestant route{name, [](std::int64_t) {}, [&](std::int64_t) { router.route(x, context, plan, tape); }};
  const timing t = s.run.race(title, {route}).front();
  s.found.routers.push_back({name, router.experts(), x.rows(), t.median, t.fastest});
}

/// PEER: D = 512, 8 heads of 16 single neurons. Every repetition takes the next batch, and what is read beside it are the
/// neurons that this batch goes to, the keys and the matrix of the queries.
void time_neurons(session& s, index_t keys) {
  constexpr index_t width = 512;
  const std::string title = "neurons N=" + std::to_string(keys * keys);
  if (!s.wants(title)) return;
  sluice::product_key_router<float> router(width, keys);
  sluice::initialize(router, /*seed=*/5);
  sluice::neuron_bank<float> bank(keys * keys, width);
  for (auto* table : {&bank.down(), &bank.up()})
    table->fill([](index_t i) { return static_cast<float>(i * 40503 % 65536 - 32768) * 1e-6F; });
  sluice::moe_layer layer{std::move(router), std::move(bank)};
  sluice::thread_pool pool(s.asked.threads);
  const auto context = context_with(pool);
  const auto read_rows = [&](const float* numbers, index_t rows, auto&& row) {
    context.executor.parallel_blocks(rows, 64, width, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) detail::read<1>(numbers + row(i) * width, width);
    });
  };
  for (const index_t rows : {index_t(1), index_t(s.asked.smoke ? 4 : 512)}) {
    const std::vector<token_rows> x = random_batches(rows, width, 35);
    std::vector<plan> plans(x.size());
    std::vector<std::vector<index_t>> touched(x.size());
    sluice::product_key_router<float>::tape scratch;
    for (std::size_t b = 0; b < x.size(); ++b) {
      layer.router().route(x[b], context, plans[b], scratch);
      for (const auto& own : plans[b].by_expert()) touched[b].push_back(own.expert);
    }
    const auto of = [&](std::int64_t r) { return static_cast<std::size_t>(r) % x.size(); };
    token_rows y(rows, width);
    decltype(layer)::workspace workspace;
    auto& own = layer.router();
    const auto read = [&](std::int64_t r) {
      const auto& experts = touched[of(r)];
      const auto each = [&](index_t i) { return experts[static_cast<std::size_t>(i)]; };
      const auto all = [](index_t i) { return i; };
      for (const auto* table : {&layer.bank().down(), &layer.bank().up()})
        read_rows(table->data(), static_cast<index_t>(experts.size()), each);
      for (const auto* table : {&own.keys(), &own.query_weight()}) read_rows(table->data(), table->size() / width, all);
    };
    const auto flush = [&](std::int64_t r) { s.flush(x[of(r)]); };
    const auto t = s.run.race(
        title + " T=" + std::to_string(rows),
        {{"layer", flush, [&](std::int64_t r) { layer.forward(x[of(r)], y, workspace, context); }}, {"read", flush, read}});
    const auto searched = static_cast<double>(own.keys().size() + own.query_weight().size());
    const auto used = static_cast<double>(own.heads() * own.top_k() * 2 * width);
    s.found.neurons.push_back({layer.experts(), rows, t[0].median, t[1].median, 2 * (searched + used)});
  }
}

/// Routing, gathering and combining are timed as the calls that do them; a layer that fuses some of them into its products
/// can only be faster than their sum.
void time_stages(session& s, const shape& on, std::int64_t rows) {
  const std::string title = "stages " + on.name + " T=" + std::to_string(rows);
  if (!s.wants(title)) return;
  const auto layer = make_layer<expert>(on);
  sluice::thread_pool pool(s.asked.threads);
  const auto context = context_with(pool);
  const token_rows x = random_tokens(rows, on.inputs, 32);
  token_rows y(rows, on.inputs);
  layer_of<expert>::workspace workspace;
  layer.forward(x, y, workspace, context);
  token_rows gathered(workspace.plan.rows(), on.inputs);
  plan routed;
  router::tape tape;
  const auto flush = [&](std::int64_t) { s.flush(x); };
  const std::vector<timing> t = s.run.race(
      title,
      {{"route", flush, [&](std::int64_t) { layer.router().route(x, context, routed, tape); }},
       {"gather", flush, [&](std::int64_t) { sluice::dispatch(workspace.plan, x, gathered, context.executor); }},
       {"combine", flush, [&](std::int64_t) { sluice::combine(workspace.plan, gathered, y, context.executor); }},
       {"whole", flush, [&](std::int64_t) { layer.forward(x, y, workspace, context); }}});
  s.found.stages.push_back({on, rows, t[0].median, t[1].median, t[2].median, t[3].median});
}

/// Every router on tokens of this width, with so many experts.
void time_routers(session& s, index_t width, index_t experts) {
  const told in_training{.training = true};
  time_router(s, "top_k, k = 2", sluice::top_k_router<float>(width, experts, {.top_k = 2}));
  time_router(s, "top_k, k = 8", sluice::top_k_router<float>(width, experts, {.top_k = 8}));
  time_router(s, "noisy_top_k, k = 2", sluice::noisy_top_k_router<float>(width, experts));
  time_router(s, "learned_noise_top_k, k = 2", sluice::learned_noise_top_k_router<float>(width, experts));
  time_router(s, "switch", sluice::switch_router<float>(width, experts));
  time_router(s, "gshard", sluice::gshard_router<float>(width, experts));
  time_router(s, "sigmoid, k = 8", sluice::sigmoid_router<float>(width, experts, {.top_k = 8}));
  time_router(s, "sparse_mixer, k = 2", sluice::sparse_mixer_router<float>(width, experts));
  time_router(s, "moe_plus_plus, k = 2", sluice::moe_plus_plus_router<float>(width, experts), {.previous_logits = true});
  time_router(s, "position_share, k = 2", sluice::position_share_router<float>(width, experts));
  time_router(s, "importance_score", sluice::importance_score_router<float>(width, experts));
  time_router(s, "expert_choice", sluice::expert_choice_router<float>(width, experts));
  time_router(s, "expert_choice, 3 a token",
              sluice::expert_choice_router<float>(width, experts, {.cap = {.most = 3}}));
  time_router(s, "expert_preferred",
              sluice::expert_preferred_router<float>(
                  width, std::vector<double>(static_cast<std::size_t>(experts), 1.0 / static_cast<double>(experts))));
  time_router(s, "pmoe", sluice::pmoe_router<float>(width, experts, s.asked.smoke ? 2 : 16));
  time_router(s, "taught_choice",
              sluice::taught_choice_router<float>(
                  sluice::expert_choice_router<float>(width, experts, {.scores = sluice::expert_choice_score::sigmoid}),
                  {width, experts, {.hidden = width}}));
  time_router(s, "vlmo", sluice::vlmo_router<float>(width, experts, {0, 1}));
  time_router(s, "moma", sluice::moma_router<float>(sluice::linear_gate<float>(width, experts), {experts / 2, experts / 2}));
  time_router(s, "mobile_vmoe",
              sluice::mobile_vmoe_router<float>(sluice::per_group_gate<sluice::linear_gate<float>>(width, experts),
                                                {.top_k = 1, .weights = sluice::weighting::pre}));
  const auto of_sample = [&](auto gate) {
    return sluice::per_group_gate<decltype(gate), sluice::group_source::group_vector>(width, std::move(gate));
  };
  time_router(s, "instance, k = 2",
              sluice::instance_router<float>(of_sample(sluice::linear_gate<float>(width, experts)), {.top_k = 2}),
              {.sample_width = width});
  const auto mocle = [&](index_t count) {
    return sluice::mocle_router<float>(sluice::mocle_gate<float>(width, count, 8, 32, {.temperature = 0.05F}),
                                       {.top_k = 1, .weights = sluice::weighting::pre});
  };
  time_router(s, "mocle", mocle(experts));
  time_router(s, "universal_expert around mocle", sluice::universal_expert_router(mocle(experts - 1)));
  time_router(s, "advmoe", sluice::advmoe_router<float>(of_sample(sluice::identity_gate<float>(experts))),
              {.sample_width = experts});
  time_router(s, "score_weighted", sluice::score_weighted_router<float>(width, experts));
  time_router(s, "straight_through", sluice::straight_through_router<float>(width, experts));
  time_router(s, "hash", sluice::hash_router<float>(sluice::no_gate<float>(width, experts),
                                                    sluice::random_hash(512, experts, 1, sluice::random_source(3))));
  time_router(s, "given", sluice::given_router<float>(sluice::no_gate<float>(width, experts)));
  time_router(s, "offered, one each",
              sluice::offered_router<float>(width, experts, {.top_k = 1, .constant_weight = true}));
  time_router(s, "random_partition, in training", sluice::random_partition_router<float>(width, experts), in_training);
  time_router(s, "smoe_dropout, k = 2", sluice::smoe_dropout_router<float>(width, experts, {.schedule = {{.last = 2}}}));
  time_router(s, "compete around top_k, k = 2",
              sluice::compete_router(sluice::top_k_router<float>(width, experts, {.top_k = 2})));
  time_router(s, "residual_weights around top_k, k = 2",
              sluice::residual_weights_router(sluice::top_k_router<float>(width, experts, {.top_k = 2})));
  time_router(s, "stable", sluice::stable_router<float>(sluice::linear_gate<float>(width, experts),
                                                        sluice::token_id_gate<float>(width, experts, 512)));
  time_router(s, "sinkhorn, k = 2", sluice::sinkhorn_router<float>(width, experts, sluice::sinkhorn_router_options::vmoe(2)));
  time_router(s, "sinkhorn by Megatron, in training",
              sluice::sinkhorn_router<float>(width, experts, sluice::sinkhorn_router_options::megatron(1)), in_training);
  time_router(s, "sinkhorn_expert_choice", sluice::sinkhorn_expert_choice_router<float>(width, experts));
  time_router(s, "sparse_expert_choice", sluice::sparse_expert_choice_router<float>(width, experts));
  time_router(s, "sparse_token_choice, k = 2", sluice::sparse_token_choice_router<float>(width, experts, {.top_k = 2}));
  time_router(s, "base, in training", sluice::base_router<float>(width, experts), in_training);
  const std::vector<sluice::index_t> seen_by_all(512, 1);
  time_router(s, "mask_moe", sluice::mask_moe_router<float>(sluice::masked_gate<sluice::linear_gate<float>>(
                                 sluice::linear_gate<float>(width, experts), sluice::frequency_mask(seen_by_all, experts))));
  time_router(s, "prototypes, k = 2", sluice::prototype_router<float>(width, experts));
  time_router(s, "dense", sluice::dense_router<float>(width, experts));
  time_router(s, "dense_softmax", sluice::dense_softmax_router<float>(width, experts));
  time_router(s, "deep_moe", sluice::deep_moe_router<float>(width, experts));
  time_router(s, "dense_entmax", sluice::dense_entmax_router<float>(width, experts));
  time_router(s, "dense_sigmoid", sluice::dense_sigmoid_router<float>(width, experts));
  time_router(s, "gumbel_softmax", sluice::gumbel_softmax_router<float>(width, experts));
  time_router(s, "dense_to_sparse", sluice::dense_to_sparse_router<float>(width, experts));
  time_router(s, "mean_active, k = 2", sluice::mean_active_router<float>(width, experts, {.top_k = 2}));
  time_router(s, "relu", sluice::relu_router<float>(width, experts));
  time_router(s, "top_p", sluice::top_p_router<float>(width, experts, {.threshold = 0.4F}));
  time_router(s, "xmoe",
              sluice::xmoe_router<float>(sluice::linear_gate<float>(width, experts), {.threshold = 0.4F}, {},
                                         sluice::position_capacity(sluice::capacity_limit::xmoe({1, 2}))));
  time_router(s, "skipping, k = 2",
              sluice::skipping_router<float>(sluice::linear_gate<float>(width, experts),
                                             sluice::softmax_rule<float>({.top_k = 2})));
  time_router(s, "chosen_ranks, 1 of 2",
              sluice::chosen_ranks_router<float>(sluice::linear_gate<float>(width, experts),
                                                 sluice::softmax_rule<float>({.top_k = 2}), {1}));
  time_router(s, "drawn_tail, 1 of 2",
              sluice::drawn_tail_router<float>(sluice::linear_gate<float>(width, experts),
                                               sluice::softmax_rule<float>({.top_k = 2}), 1),
              in_training);
  time_router(s, "soft_moe", sluice::soft_moe_router<float>(width, experts));
  time_router(s, "dselect_k", sluice::dselect_k_router<float>(width, experts));
  time_router(s, "top_any (DynMoE)", sluice::top_any_router<float>(width, experts));
}

}  // namespace

void routing_cases(session& s) {
  // Narrow tokens: the product of the gate, which most have alike, shall not hide what a router does with its scores.
  if (s.asked.smoke)
    time_routers(s, 32, 8);
  else
    for (const index_t experts : {8, 64, 256}) time_routers(s, 256, experts);
  const index_t keys = s.asked.smoke ? 4 : 1024;
  time_router(s, "product_key, 8 heads", sluice::product_key_router<float>(s.asked.smoke ? 32 : 512, keys));
  time_router(s, "tucker_key, k = 16", sluice::tucker_key_router<float>(s.asked.smoke ? 32 : 512, keys));

  time_neurons(s, keys);

  if (s.asked.smoke) return time_stages(s, tiny(), 4);
  for (const shape& on : published_shapes())
    for (const std::int64_t rows : {1, 64, 512})
      if (!s.asked.quick || rows == 512) time_stages(s, on, rows);
}

}  // namespace bench
