/// One vector for every group of tokens: what is decided once a sequence, an image or a task is decided by it.
///
///   v[g] [G,F]   mean_of_tokens  mean of the group's tokens, without padding
///                first_token     the first of them, such as a class token
///                all_tokens      all of them, one behind the other, zeros for padding: groups of N tokens, F = N D
///                group_vector    context.group_features[g]: an instruction, an image at lower resolution, given scores
///                ids             none (zeros): who is asked reads ids alone
///
/// Who reads v sees a batch in which a row is a group (context_of_groups): of ids it sees those of the group's first
/// token, the features of its rows are the context's group_features, and a group of nothing but padding is padding.
/// Calls: find, gather, and on the way back scatter. Memory of one call.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/error.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cstdint>
#include <span>

namespace sluice::inline SLUICE_ISA {

enum class group_source { mean_of_tokens, first_token, all_tokens, group_vector, ids };

template <FloatOrDouble Scalar>
class group_vectors {
public:
  /// Which tokens count, and the ids of every group.
  void find(const routing_context<Scalar>& context, index_t tokens) {
    const index_t groups = context.group_count();
    counts_.resize(tokens);
    used_.resize(groups);
    for (auto* numbers : {&count_, &first_}) numbers->assign(groups, 0);
    for (index_t g = 0; g < groups; ++g) {
      const token_range group = context.group(g, tokens);
      for (index_t token = group.begin; token < group.end; ++token) {
        counts_[token] = !context.is_padding(token);
        if (counts_[token] && count_[g]++ == 0) first_[g] = token;
      }
      used_[g] = count_[g] > 0;
    }
    const auto pick = [&](std::span<const index_t> ids, buffer<index_t>& own) {
      own.resize(ids.empty() && tokens > 0 ? 0 : groups);  // of no tokens nobody can say whether ids were given
      for (index_t g = 0; g < own.size(); ++g) own[g] = used_[g] ? ids[static_cast<std::size_t>(first_[g])] : 0;
    };
    pick(context.token_ids, token_ids_);
    pick(context.modality_ids, modality_ids_);
    pick(context.cluster_ids, cluster_ids_);
  }

  index_t groups() const noexcept { return used_.size(); }
  /// How many tokens of the group count.
  index_t count(index_t g) const noexcept { return count_[g]; }
  bool counts(index_t token) const noexcept { return counts_[token] != 0; }

  /// The context of a batch in which a row is a group. Valid until the next find. Throws std::invalid_argument if it has
  /// previous logits, which are of tokens.
  routing_context<Scalar> context_of_groups(const routing_context<Scalar>& context) const {
    if (context.previous_logits)
      throw_invalid("routing_context.previous_logits are of ", context.previous_logits.rows,
                    " tokens; who decides once for each of ", groups(), " groups has none of them");
    routing_context<Scalar> groups = context;
    groups.groups = {};
    groups.token_mask = used_.span();
    groups.token_ids = token_ids_.span();
    groups.modality_ids = modality_ids_.span();
    groups.cluster_ids = cluster_ids_.span();
    groups.protected_tokens = {};
    groups.sequences = {};
    groups.encoders = {};
    groups.expert_ids = {};
    groups.expert_weights = groups.group_features = {};
    groups.features = context.group_features;
    return groups;
  }

  /// Writes v [G,width]. Throws std::invalid_argument if the context's vectors are to be read and are not [G,width], or
  /// all tokens and a group has not as many as that.
  void gather(group_source source, tokens_in<Scalar> x, const routing_context<Scalar>& context, index_t width) {
    vectors_.resize(groups(), width);
    if (source == group_source::group_vector) {
      const auto& given = context.group_features;
      if (!given || given.rows != groups() || given.cols != width)
        throw_invalid("routing_context.group_features has to be [G, F] = [", groups(), ", ", width, "], not [",
                      given.rows, ", ", given.cols, "]");
      vectors_.map() = given.map();
    } else if (source == group_source::ids) {
      vectors_.map().setZero();
    } else {
      gather_tokens(source, x, context);
    }
  }

  const matrix_buffer<Scalar>& vectors() const noexcept { return vectors_; }

  /// dv [G,F], zero at first, for who goes back; afterwards it stays here.
  matrix_buffer<Scalar>& clear_gradient() {
    gradient_.set_zero(vectors_.rows(), vectors_.cols());
    return gradient_;
  }
  const matrix_buffer<Scalar>& gradient() const noexcept { return gradient_; }

  /// Adds dv into dx where v was made of tokens.
  void scatter(group_source source, const routing_context<Scalar>& context, tokens_out<Scalar> dx) const {
    if (source == group_source::group_vector || source == group_source::ids) return;
    for (index_t g = 0; g < groups(); ++g) {
      if (!used_[g]) continue;
      const auto add = [&](index_t token, Scalar share) {
        kernel::add_scaled(share, gradient_.row(g), dx.data() + token * dx.outerStride(), gradient_.cols());
      };
      if (source == group_source::first_token) {
        add(first_[g], Scalar(1));
        continue;
      }
      const token_range group = context.group(g, dx.rows());
      for (index_t token = group.begin; token < group.end; ++token) {
        if (!counts_[token]) continue;
        if (source == group_source::mean_of_tokens)
          add(token, 1 / static_cast<Scalar>(count_[g]));
        else
          kernel::add_scaled(Scalar(1), gradient_.row(g) + (token - group.begin) * dx.cols(),
                             dx.data() + token * dx.outerStride(), dx.cols());
      }
    }
  }

private:
  void gather_tokens(group_source source, tokens_in<Scalar> x, const routing_context<Scalar>& context) {
    const index_t width = vectors_.cols();
    if (source == group_source::all_tokens) require_sizes(context, x.rows(), width, x.cols());
    context.executor.parallel_blocks(groups(), 1, x.rows() * width / groups(), [&](index_t g, index_t) {
      Scalar* vector = vectors_.row(g);
      std::fill_n(vector, width, Scalar(0));
      if (!used_[g]) return;
      const auto row = [&](index_t token) { return x.data() + token * x.outerStride(); };
      if (source == group_source::first_token) {
        std::copy_n(row(first_[g]), width, vector);
        return;
      }
      const token_range group = context.group(g, x.rows());
      if (source == group_source::all_tokens) {
        for (index_t token = group.begin; token < group.end; ++token)
          if (counts_[token]) std::copy_n(row(token), x.cols(), vector + (token - group.begin) * x.cols());
        return;
      }
      for (index_t token = group.begin; token < group.end; ++token)
        if (counts_[token]) kernel::add_scaled(Scalar(1), row(token), vector, width);
      for (index_t d = 0; d < width; ++d) vector[d] /= static_cast<Scalar>(count_[g]);
    });
  }

  void require_sizes(const routing_context<Scalar>& context, index_t tokens, index_t width, index_t token_width) const {
    for (index_t g = 0; g < groups(); ++g)
      if (const index_t size = context.group(g, tokens).size(); used_[g] && size * token_width != width)
        throw_invalid("all tokens of a group are to be ", width, " numbers; group ", g, " has ", size, " tokens of ",
                      token_width);
  }

  buffer<std::uint8_t> counts_;                             // [T] 1 where the token is no padding
  buffer<std::uint8_t> used_;                               // [G] 1 where there is such a token
  buffer<index_t> count_;                                   // [G] how many
  buffer<index_t> first_;                                   // [G] the first of them
  buffer<index_t> token_ids_, modality_ids_, cluster_ids_;  // [G]
  matrix_buffer<Scalar> vectors_;
  matrix_buffer<Scalar> gradient_;
};

}  // namespace sluice::inline SLUICE_ISA
