/// Everything a router may need besides x, all of it optional.
///
/// One plain struct for every router: fill in what you have, by name:
///   layer.forward(x, y, tape, {.training = true, .random = random_source{7, step}, .executor = pool});
/// A router that needs a field which the caller left out says so in a std::invalid_argument. Views are not owned: they
/// must live until the call, and for training until the matching backward call, has returned.
///
/// Layers that share a context draw the same numbers. So that each draws for itself, a layer of a model gets
/// context.for_layer(its place in the model): 0, 1, 2, ... Layers that hold layers do this themselves for what they
/// hold, and nested ones need not know of each other. What runs beside a layer that draws as it would alone is at the
/// places -1, -2, which nobody within that layer has.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/random.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <span>

namespace sluice::inline SLUICE_ISA {

/// A block of consecutive tokens that is routed on its own: a sequence, an image, a device's share.
struct token_range {
  index_t begin = 0;
  index_t end = 0;
  index_t size() const noexcept { return end - begin; }
};

/// An optional [rows, cols] matrix of the caller; rows are adjacent.
template <typename Scalar>
struct optional_matrix {
  const Scalar* data = nullptr;
  index_t rows = 0;
  index_t cols = 0;

  optional_matrix() = default;
  optional_matrix(const Scalar* numbers, index_t row_count, index_t col_count)
      : data(numbers), rows(row_count), cols(col_count) {}
  optional_matrix(const matrix<Scalar>& m) : data(m.data()), rows(m.rows()), cols(m.cols()) {}
  optional_matrix(const_matrix_map<Scalar> m) : data(m.data()), rows(m.rows()), cols(m.cols()) {}
  explicit operator bool() const noexcept { return data != nullptr; }
  const_matrix_map<Scalar> map() const { return {data, rows, cols}; }
};

/// Rows of another source that tokens look at (attention/cross_attention.hpp): what an encoder says of an image, a
/// text.
template <typename Scalar>
struct encoder_states {
  optional_matrix<Scalar> rows{};  ///< [S,F]
  /// Whose rows are whose: borders, ascending from 0 to S, of as many ranges as the batch has sequences. Empty: one.
  std::span<const index_t> sequences{};
  std::span<const std::uint8_t> row_mask{};  ///< one entry a row, 0 = padding, which nobody sees; empty: all are seen
  /// S F numbers to which every backward call adds the gradient of the rows, whoever looks at them; empty: not wanted.
  std::span<Scalar> gradient{};
};

template <typename Scalar>
struct routing_context {
  /// Noise, jitter, random choices and the recording of statistics for state updates happen only in training.
  bool training = false;
  /// Draws of this call. A training step passes another step number each time.
  random_source random{};
  /// Experts per token for this call; 0 means the router's own number.
  index_t top_k = 0;
  /// One entry a token, 0 = padding: not routed, its output row is zero, no loss or counter sees it.
  std::span<const std::uint8_t> token_mask{};
  /// Borders of the groups that are routed independently, G+1 ascending numbers from 0 to T. Empty: one group.
  std::span<const index_t> groups{};
  /// Borders of the sequences in which routers may look back at earlier tokens, ascending as those of groups. Empty:
  /// the groups are the sequences.
  std::span<const index_t> sequences{};
  std::span<const index_t> token_ids{};
  std::span<const index_t> modality_ids{};
  std::span<const index_t> cluster_ids{};
  /// One entry a token, 1 = keeps all its experts, whatever leaves some out to save work.
  std::span<const std::uint8_t> protected_tokens{};
  index_t task_id = -1;
  /// Logits [T,E] of the previous mixture layer, for routers that read them (MoE++).
  optional_matrix<Scalar> previous_logits{};
  /// Experts [T,K] that were chosen elsewhere, best first and no_expert behind them, for routers that follow
  /// (router/fixed/given.hpp), and the weights that go with them.
  optional_matrix<index_t> expert_ids{};
  optional_matrix<Scalar> expert_weights{};
  /// What the router reads instead of, or besides, x: [T,F].
  optional_matrix<Scalar> features{};
  /// What the router reads of every group: [G,F].
  optional_matrix<Scalar> group_features{};
  /// What layers look at besides x: a layer says which of them it reads, by its number here.
  std::span<const encoder_states<Scalar>> encoders{};
  /// Training step, for schedules.
  index_t step = 0;
  /// Threads to use. Serial if left out.
  executor_ref executor{};

  /// The same context with draws of its own, for the layer at this place of a model.
  routing_context for_layer(index_t place) const {
    routing_context other = *this;
    other.random = random.split(place);
    return other;
  }

  /// What of the call holds for rows that are not its tokens, but belong to its sequences. If they are of other
  /// sequences, nobody can say what encoders say to them.
  routing_context for_other_rows() const {
    routing_context other;
    other.training = training;
    other.random = random;
    other.task_id = task_id;
    other.encoders = encoders;
    other.step = step;
    other.executor = executor;
    return other;
  }

  bool is_padding(index_t token) const noexcept {
    return !token_mask.empty() && token_mask[static_cast<std::size_t>(token)] == 0;
  }
  bool is_protected(index_t token) const noexcept {
    return !protected_tokens.empty() && protected_tokens[static_cast<std::size_t>(token)] != 0;
  }
  index_t group_count() const noexcept { return groups.empty() ? 1 : static_cast<index_t>(groups.size()) - 1; }
  token_range group(index_t g, index_t tokens) const noexcept {
    if (groups.empty()) return {0, tokens};
    return {groups[static_cast<std::size_t>(g)], groups[static_cast<std::size_t>(g) + 1]};
  }
  /// Borders of the sequences; empty: the batch is one.
  std::span<const index_t> sequence_borders() const noexcept { return sequences.empty() ? groups : sequences; }
  index_t sequence_count() const noexcept {
    return sequence_borders().empty() ? 1 : static_cast<index_t>(sequence_borders().size()) - 1;
  }
  token_range sequence(index_t s, index_t tokens) const noexcept {
    const auto borders = sequence_borders();
    if (borders.empty()) return {0, tokens};
    return {borders[static_cast<std::size_t>(s)], borders[static_cast<std::size_t>(s) + 1]};
  }
};

/// Throws std::invalid_argument if a part of the context does not fit a batch of this many tokens.
template <typename Scalar>
void check_context(const routing_context<Scalar>& context, index_t tokens) {
  const auto check_length = [&](const char* name, std::size_t length) {
    if (length != 0 && static_cast<index_t>(length) != tokens)
      throw_invalid("routing_context.", name, " has ", length, " entries for ", tokens, " tokens");
  };
  check_length("token_mask", context.token_mask.size());
  check_length("token_ids", context.token_ids.size());
  check_length("modality_ids", context.modality_ids.size());
  check_length("cluster_ids", context.cluster_ids.size());
  check_length("protected_tokens", context.protected_tokens.size());
  const auto check_rows = [&](const char* name, const auto& rows) {
    if (rows && rows.rows != tokens)
      throw_invalid("routing_context.", name, " has ", rows.rows, " rows for ", tokens, " tokens");
  };
  check_rows("previous_logits", context.previous_logits);
  check_rows("expert_ids", context.expert_ids);
  check_rows("expert_weights", context.expert_weights);
  check_rows("features", context.features);
  if (context.group_features && context.group_features.rows != context.group_count())
    throw_invalid("routing_context.group_features has ", context.group_features.rows, " rows for ",
                  context.group_count(), " groups");
  const auto ascend = [](std::span<const index_t> borders, index_t end) {
    bool ascending = borders.empty() || (borders.size() > 1 && borders.front() == 0 && borders.back() == end);
    for (std::size_t g = 1; g < borders.size(); ++g) ascending &= borders[g - 1] <= borders[g];
    return ascending;
  };
  const auto check_borders = [&](const char* name, std::span<const index_t> borders) {
    if (ascend(borders, tokens)) return;
    const auto fall = std::is_sorted_until(borders.begin(), borders.end());
    if (fall != borders.end())
      throw_invalid("routing_context.", name, " must ascend; entry ", fall - borders.begin(), " is ", *fall, " after ",
                    *(fall - 1));
    throw_invalid("routing_context.", name, " must ascend from 0 to the number of tokens, ", tokens, "; its ",
                  borders.size(), " entries go from ", borders.front(), " to ", borders.back());
  };
  check_borders("groups", context.groups);
  check_borders("sequences", context.sequences);
  for (std::size_t e = 0; e < context.encoders.size(); ++e) {
    const encoder_states<Scalar>& one = context.encoders[e];
    const index_t ranges = one.sequences.empty() ? 1 : static_cast<index_t>(one.sequences.size()) - 1;
    const auto numbers = static_cast<std::size_t>(one.rows.rows * one.rows.cols);
    if (!ascend(one.sequences, one.rows.rows) || ranges != context.sequence_count())
      throw_invalid("routing_context.encoders[", e, "] needs borders that ascend from 0 to its number of rows, ",
                    one.rows.rows, ", a range for each of ", context.sequence_count(), " sequences; it has ", ranges);
    if (!one.row_mask.empty() && static_cast<index_t>(one.row_mask.size()) != one.rows.rows)
      throw_invalid("routing_context.encoders[", e, "].row_mask has ", one.row_mask.size(), " entries for ",
                    one.rows.rows, " rows");
    if (!one.gradient.empty() && one.gradient.size() != numbers)
      throw_invalid("routing_context.encoders[", e, "].gradient has room for ", one.gradient.size(), " of ", numbers,
                    " numbers");
  }
}

/// What every router checks first: that x is [T, inputs] and the context fits it. Throws std::invalid_argument.
template <typename Scalar>
void check_tokens(tokens_in<Scalar> x, index_t inputs, const routing_context<Scalar>& context) {
  if (x.cols() != inputs)
    throw_invalid("the router reads tokens of width ", inputs, "; x is [", x.rows(), ", ", x.cols(), "]");
  check_context(context, x.rows());
}

}  // namespace sluice::inline SLUICE_ISA
