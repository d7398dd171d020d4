// What of a call's context, and of what they do to tokens, layers around layers and banks pass on.
#include <sluice/layer/split/own_context.hpp>

#include <sluice/adapter/adapted_feed_forward.hpp>
#include <sluice/adapter/of_modality.hpp>
#include <sluice/expert/latent_bank.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/beside.hpp>
#include <sluice/layer/depth/either.hpp>
#include <sluice/layer/depth/repeated.hpp>
#include <sluice/layer/encoders/network_bank.hpp>
#include <sluice/layer/encoders/unfolded.hpp>
#include <sluice/layer/images/patch_experts.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/multi_gate.hpp>
#include <sluice/layer/over_draws.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/layer/served.hpp>
#include <sluice/layer/split/columns.hpp>
#include <sluice/layer/split/sub_tokens.hpp>
#include <sluice/layer/transposed.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <span>
#include <vector>

using namespace sluice;

namespace {

/// The contexts that a layer was called with.
using heard_contexts = std::vector<routing_context<double>>;

/// y = x, and the context is written down.
template <bool Mixes>
class listening_layer : public token_mixer<listening_layer<Mixes>, double> {
  friend token_mixer<listening_layer, double>;

public:
  using typename token_mixer<listening_layer, double>::context_type;
  using typename token_mixer<listening_layer, double>::tape;
  static constexpr bool causal = !Mixes;
  static constexpr bool mixes_tokens = Mixes;

  listening_layer(index_t width, heard_contexts& heard) : width_(width), heard_(&heard) {}
  index_t inputs() const { return width_; }
  index_t experts() const { return 1; }
  index_t workspace_bytes(index_t, bool = false) const { return 0; }

private:
  template <typename Memory>
  void mix(tokens_in<double> x, tokens_out<double> y, Memory&, const context_type& context) const {
    y = x;
    heard_->push_back(context);
  }
  void mix_backward(tokens_in<double> dy, tokens_out<double> dx, tape&) { dx = dy; }

  index_t width_;
  heard_contexts* heard_;
};

template <typename T>
std::vector<T> list_of(std::span<const T> numbers) {
  return {numbers.begin(), numbers.end()};
}
using border_list = std::vector<index_t>;
using flag_list = std::vector<std::uint8_t>;

/// Four tokens in two groups and two other sequences, and two encoders.
struct full_call {
  border_list groups{0, 2, 4}, sequences{0, 1, 4}, token_ids{5, 6, 7, 8}, modality_ids{2, 2, 2, 2},
      cluster_ids{3, 2, 1, 0};
  flag_list shielded{0, 1, 0, 1};
  matrix<double> states = test::random_matrix<double>(5, 2, 1), vectors = test::random_matrix<double>(2, 3, 2),
                 features = test::random_matrix<double>(4, 3, 3);
  border_list rows{0, 2, 5};
  std::vector<encoder_states<double>> encoders{{.rows = states, .sequences = rows},
                                               {.rows = states, .sequences = rows}};

  routing_context<double> context() const {
    return {.random = random_source{9, 4},
            .top_k = 2,
            .groups = groups,
            .sequences = sequences,
            .token_ids = token_ids,
            .modality_ids = modality_ids,
            .cluster_ids = cluster_ids,
            .protected_tokens = shielded,
            .task_id = 6,
            .features = features,
            .group_features = vectors,
            .encoders = encoders,
            .step = 11};
  }
};

/// Returns the memory that views of inner layers may lie in.
template <typename Layer>
auto call_once(const Layer& layer, index_t tokens, const routing_context<double>& context) {
  typename Layer::workspace ws;
  matrix<double> x = test::random_matrix<double>(tokens, layer.inputs(), 4), y(tokens, layer.outputs());
  layer.forward(x, y, ws, context);
  return ws;
}

/// What every layer hears, whatever its tokens are.
void check_common(const routing_context<double>& heard, const routing_context<double>& given) {
  CHECK(heard.task_id == given.task_id);
  CHECK(heard.step == given.step);
  CHECK(heard.encoders.data() == given.encoders.data());
  CHECK(heard.encoders.size() == given.encoders.size());
}

}  // namespace

TEST_CASE("layers around layers: tokens of the call keep all that it says of them", "[layer][context]") {
  heard_contexts heard;
  const full_call batch;
  const auto given = batch.context();
  const listening_layer<true> inner(3, heard);
  const listening_layer<false> plain(3, heard);
  const auto check = [&](const char* name, const auto& layer, std::size_t calls = 1) {
    using layer_type = std::remove_cvref_t<decltype(layer)>;
    static_assert(is_token_mixer<layer_type> && !is_causal<layer_type>);
    INFO(name);
    heard.clear();
    call_once(layer, 4, given);
    CHECK(heard.size() == calls);
    for (const auto& one : heard) {
      check_common(one, given);
      CHECK(one.top_k == 2);
      CHECK(one.groups.data() == given.groups.data());
      CHECK(one.sequences.data() == given.sequences.data());
      CHECK(one.token_ids.data() == given.token_ids.data());
      CHECK(one.protected_tokens.data() == given.protected_tokens.data());
      CHECK(one.features.data == given.features.data);
      CHECK(one.group_features.data == given.group_features.data);
    }
  };
  check("residual_layer", residual_layer{inner});
  check("beside_layer", beside_layer{plain, inner}, 2);
  check("column_layers", column_layers{plain, inner}, 2);
  check("sequence", sequence{plain, inner}, 2);
  check("repeated_layers", repeated_layers{std::vector{inner}, {.rounds = 2}}, 2);
  check("either_layer", either_layer<listening_layer<true>, listening_layer<false>>{plain});
  check("modality_layer", modality_layer{inner, 2});
  check("served_layer", served_layer{inner});
}

TEST_CASE("sub_token_layer: parts of tokens hear what is said of their tokens, groups and sequences",
          "[layer][context]") {
  heard_contexts heard;
  const full_call batch;
  const auto given = batch.context();
  call_once(sub_token_layer{listening_layer<true>(3, heard), 2}, 4, given);
  const auto& one = heard.at(0);
  check_common(one, given);
  CHECK(one.top_k == 2);
  CHECK(one.group_features.data == given.group_features.data);
  CHECK(!one.features);

  const matrix<double> logits = test::random_matrix<double>(4, 2, 5);
  CHECK_THROWS_WITH(call_once(sub_token_layer{listening_layer<true>(3, heard), 2}, 4, {.previous_logits = logits}),
                    Catch::Contains("previous_logits are of 4 tokens, which are not those of the layer inside"));
}

TEST_CASE("unfolded_layer: pieces of rows hear what is said of their row, and encoders if it is a sequence",
          "[layer][context]") {
  heard_contexts heard;
  const full_call batch;
  auto given = batch.context();
  const unfolded_layer layer{listening_layer<true>(3, heard), 2};
  unfolded_layer<listening_layer<true>>::workspace ws;
  matrix<double> x = test::random_matrix<double>(4, 6, 4), y(4, 6);
  layer.forward(x, y, ws, given);
  CHECK(heard.back().encoders.empty());  // three rows of one sequence
  CHECK(heard.back().sequences.empty());
  CHECK(list_of(heard.back().groups) == border_list{0, 2, 4, 6, 8});
  CHECK(list_of(heard.back().token_ids) == border_list{5, 5, 6, 6, 7, 7, 8, 8});
  CHECK(list_of(heard.back().protected_tokens) == flag_list{0, 0, 1, 1, 0, 0, 1, 1});
  CHECK(heard.back().top_k == 0);
  CHECK(!heard.back().group_features);

  const flag_list mask{1, 0, 1, 0};
  given.token_mask = mask;
  layer.forward(x, y, ws, given);
  check_common(heard.back(), given);
  CHECK(list_of(heard.back().sequences) == border_list{0, 2, 8});
  CHECK(list_of(heard.back().groups) == border_list{0, 2, 4, 6, 8});
  CHECK(list_of(heard.back().token_mask) == flag_list{1, 1, 0, 0, 1, 1, 0, 0});

  const encoder_states<double> image{.rows = batch.states};
  layer.forward(x.topRows(1), y.topRows(1), ws, {.encoders = {&image, 1}});
  CHECK(heard.back().encoders.data() == &image);
  layer.forward(x.topRows(0), y.topRows(0), ws, {.encoders = {&image, 1}});
  CHECK(heard.back().encoders.data() == &image);
}

TEST_CASE("transposed_layer: channels hear what is said of their group", "[layer][context]") {
  heard_contexts heard;
  const full_call batch;
  auto given = batch.context();
  const transposed_layer layer{listening_layer<true>(2, heard), 3};
  call_once(layer, 4, given);
  CHECK(heard.back().encoders.empty());  // sequences are not the groups
  given.sequences = {};
  call_once(layer, 4, given);
  check_common(heard.back(), given);
  CHECK(heard.back().group_features.data == given.group_features.data);
  CHECK(heard.back().top_k == 0);
  CHECK(heard.back().token_ids.empty());
  const border_list nothing{0, 0, 0};
  call_once(layer, 0, {.groups = nothing, .group_features = batch.vectors, .encoders = batch.encoders});
  CHECK(heard.back().encoders.data() == batch.encoders.data());
}

TEST_CASE("banks of networks: who runs them tells them what the call says", "[layer][context]") {
  heard_contexts heard;
  const full_call batch;
  const encoder_states<double> image{.rows = batch.states};
  const routing_context<double> given{.random = random_source{9, 4}, .task_id = 6, .encoders = {&image, 1}, .step = 11};
  const auto networks = [&]<bool Mixes>(std::bool_constant<Mixes>, index_t width) {
    return expert_union{network_bank{2, listening_layer<Mixes>(width, heard)}};
  };
  const auto check_heard = [&](const char* name) {
    INFO(name);
    REQUIRE(heard.size() > 1);
    const auto* last = &heard.back() - 1;  // networks of padding made room before
    for (const auto& one : {last[0], last[1]}) check_common(one, given);
    const random_site site("passed_context_test");
    CHECK(last[0].random.uniform(site, 0) == given.random.split(0).uniform(site, 0));
    CHECK(last[1].random.uniform(site, 0) == given.random.split(1).uniform(site, 0));
    heard.clear();
  };
  const std::true_type mixing;
  const std::false_type plain;
  const dense_softmax_router<double> all(3, 2);

  moe_layer mixture{all, latent_bank{networks(mixing, 4), 3, 3}};
  initialize(mixture, 1);
  call_once(mixture, 4, given);
  check_heard("moe_layer");
  static_assert(is_token_mixer<decltype(mixture)> && !is_causal<decltype(mixture)>);

  moe_layer slots{soft_moe_router<double>{3, 2, {.slots_per_expert = 2}}, networks(mixing, 3)};
  initialize(slots, 1);
  call_once(slots, 4, given);
  check_heard("moe_layer of slots");
  CHECK_THROWS_WITH(call_once(slots, 4, {.sequences = batch.sequences}),
                    Catch::Contains("slots of one sequence, not of 2"));
  moe_layer others{soft_moe_router<double>{3, 2, {.slots_per_expert = 2}}, networks(plain, 3)};
  initialize(others, 1);
  call_once(others, 4, {.sequences = batch.sequences, .encoders = batch.encoders});
  CHECK(heard.back().encoders.empty());

  multi_gate_layer tasks{std::vector(2, all), networks(plain, 3)};
  initialize(tasks, 1);
  call_once(tasks, 4, given);
  check_heard("multi_gate_layer");
  const auto of_tasks = call_once(tasks, 4, {.sequences = batch.sequences, .encoders = batch.encoders});
  CHECK(list_of(heard.back().sequences) == batch.sequences);
  heard.clear();

  moe_layer drawn{all, networks(plain, 3)};
  initialize(drawn, 1);
  over_draws<decltype(drawn)> draws;
  matrix<double> x = test::random_matrix<double>(4, 3, 4), y(4, 3);
  draws.mean(drawn, x, y, {.draws = 2}, {}, given);
  check_heard("over_draws");

  adapted_feed_forward tuned{linear_expert<double>{3, 3}, linear_expert<double>{3, 3},
                             moe_layer{all, networks(mixing, 3)}, networks(mixing, 3)};
  static_assert(is_token_mixer<decltype(tuned)>);
  initialize(tuned, 1);
  call_once(tuned, 4, given);
  check_heard("adapted_feed_forward");

  const image_windows windows({1, 2, 3}, window_shape::square(2));
  patch_experts_layer patches{top_k_router<double>{4, 2, {.top_k = 2}},
                              network_bank{2, listening_layer<true>(4, heard)}, windows};
  initialize(patches, 1);
  call_once(patches, 1, given);
  check_heard("patch_experts_layer");
  const auto of_patches = call_once(patches, 2, {});
  CHECK(list_of(heard.back().sequence_borders()) == border_list{0, 2, 4});
}
