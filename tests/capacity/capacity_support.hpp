// Shared by the tests of capacity policies: choice tables drawn from a seed, and the definition of being served.
#pragma once

#include <sluice/capacity/capacity_limit.hpp>
#include <sluice/core/choices.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/train/check_capacity.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

#include <numeric>

namespace sluice::test {

/// Tokens with k distinct experts each, falling weights, some ties among them, and some choices thinned out.
inline choice_table<double> drawn_choices(index_t T, index_t E, index_t k, std::uint64_t seed, bool thinned = true) {
  choice_table<double> choices;
  choices.reset(T, k);
  const random_source random(seed);
  index_t draw = 0;
  const auto uniform = [&] { return random.uniform(random_site::user_site, draw++); };
  for (index_t t = 0; t < T; ++t) {
    std::vector<index_t> experts(static_cast<std::size_t>(E));
    std::iota(experts.begin(), experts.end(), 0);
    double weight = 1;
    for (index_t j = 0; j < k; ++j) {
      const auto left = static_cast<double>(experts.size());
      const auto at = static_cast<std::ptrdiff_t>(left * uniform() * uniform());  // lower experts are wanted more
      choices.expert[t * k + j] = experts[static_cast<std::size_t>(at)];
      experts.erase(experts.begin() + at);
      weight *= std::ceil(uniform() * 8) / 8;
      choices.weight[t * k + j] = weight;
      choices.asked[t * k + j] = !thinned || uniform() < 0.9;
    }
    choices.priority[t] = choices.weight[t * k];
  }
  return choices;
}

/// Pairs in the order in which a rule serves them -> kept, slot: the definition.
struct naive_served {
  std::vector<int> kept;
  std::vector<index_t> slot;

  template <typename Scalar>
  naive_served(const choice_table<Scalar>& choices, const std::vector<index_t>& order,
               const std::vector<index_t>& capacity)
      : kept(static_cast<std::size_t>(choices.tokens * choices.top_k), 0), slot(kept.size(), -1) {
    std::vector<index_t> queue(capacity.size(), 0);
    for (const index_t pair : order) {
      const auto e = static_cast<std::size_t>(choices.expert[pair]);
      slot[static_cast<std::size_t>(pair)] = queue[e]++;
      kept[static_cast<std::size_t>(pair)] = slot[static_cast<std::size_t>(pair)] < capacity[e];
    }
  }
};

/// All that is asked for in a group: rank by rank, tokens in the order given.
template <typename Scalar>
std::vector<index_t> by_rank(const choice_table<Scalar>& choices, const std::vector<index_t>& tokens) {
  std::vector<index_t> order;
  for (index_t j = 0; j < choices.top_k; ++j)
    for (const index_t t : tokens)
      if (choices.asked[t * choices.top_k + j]) order.push_back(t * choices.top_k + j);
  return order;
}

inline std::vector<index_t> tokens_of(token_range group) {
  std::vector<index_t> tokens(static_cast<std::size_t>(group.size()));
  std::iota(tokens.begin(), tokens.end(), group.begin);
  return tokens;
}

template <typename Scalar>
std::vector<index_t> loads(const choice_table<Scalar>& choices, index_t E, bool kept) {
  std::vector<index_t> counts(static_cast<std::size_t>(E), 0);
  for (const index_t pair : choices.order)
    counts[static_cast<std::size_t>(choices.expert[pair])] += !kept || choices.kept[pair];
  return counts;
}

/// What every policy promises (train/check_capacity.hpp), and what one with equal limits does: nobody exceeds its limit,
/// nobody is refused where there is room, refused slots count on from the limit; more room never takes a slot away.
template <typename Policy>
void check_served(const Policy& make_policy, index_t T, index_t E, index_t k, std::uint64_t seed,
                  bool training = true) {
  routing_context<double> context;
  context.training = training;
  context.random = random_source(seed);
  std::vector<std::uint8_t> kept_before;
  for (index_t capacity = 1; capacity <= T + 1; ++capacity) {
    choice_table<double> choices = drawn_choices(T, E, k, seed);
    make_policy(capacity).serve(choices, {0, T}, E, context);
    const auto wanted = loads(choices, E, false);
    const auto kept = loads(choices, E, true);
    for (index_t e = 0; e < E; ++e) CHECK(kept[std::size_t(e)] == std::min(wanted[std::size_t(e)], capacity));
    std::vector<index_t> refused(std::size_t(E), capacity);
    for (const index_t pair : choices.order) {
      if (!choices.kept[pair]) CHECK(choices.slot[pair] == refused[std::size_t(choices.expert[pair])]++);
      if (!kept_before.empty() && kept_before[std::size_t(pair)]) CHECK(choices.kept[pair] == 1);
    }
    kept_before.assign(choices.kept.begin(), choices.kept.end());
    if (T < 4) continue;  // the kit wants a few tokens
    const auto report = check_capacity(make_policy(capacity), {.seed = seed, .tokens = T, .experts = E, .top_k = k});
    INFO(report.describe());
    CHECK(report.passed());
  }
}

/// Choices of the catalogue's worked example: the two best of four experts for each of four tokens, `pre` weights.
inline choice_table<double> fixture_choices() {
  choice_table<double> choices;
  choices.reset(4, 2);
  const std::array<index_t, 8> experts{0, 1, 0, 1, 1, 2, 0, 3};
  const std::array<double, 8> weights{0.643914, 0.236883, 0.455054, 0.276004, 0.789137, 0.106798, 0.789137, 0.106798};
  for (index_t pair = 0; pair < 8; ++pair) {
    choices.expert[pair] = experts[std::size_t(pair)];
    choices.weight[pair] = weights[std::size_t(pair)];
    choices.asked[pair] = 1;
  }
  for (index_t t = 0; t < 4; ++t) choices.priority[t] = choices.weight[2 * t];
  return choices;
}

/// Kept pairs as (token, expert), in the order of serving.
template <typename Scalar>
std::vector<std::pair<index_t, index_t>> kept_pairs(const choice_table<Scalar>& choices) {
  std::vector<std::pair<index_t, index_t>> pairs;
  for (const index_t pair : choices.order)
    if (choices.kept[pair]) pairs.emplace_back(pair / choices.top_k, choices.expert[pair]);
  return pairs;
}

}  // namespace sluice::test
