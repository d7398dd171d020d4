/// One decision a group: an inner gate scores one vector for every group of tokens, and all its tokens share it.
///
///   v[g] [G,F]   mean_of_tokens  mean of the group's tokens, without padding and tokens that hold NaN     Mobile V-MoE
///                first_token     the first of them, such as a class token
///                group_vector    context.group_features[g]: an instruction, an image at lower resolution, given scores
///                ids             none (zeros): the inner gate reads ids alone                              MoCLE
///   logits[t] = gate(v)[g] for every token t of group g
///   dgate[g] = sum over the group's tokens of dlogits;  dv[g] goes back into x, or stays in tape.group_gradient()
///
/// The inner gate sees a batch of G rows: noise in it is drawn once a group, of ids it sees those of the group's first
/// token, and group_features that are not the vectors themselves are the features of its rows: joined_gate inside scores
/// an instruction and the mean of an image together. Equal logits give equal choices, so no rule needs to know; noise of the router itself would tell tokens
/// of a group apart. Hidden tokens have logits 0; a group of nothing else is not scored. NaN in group_features, or
/// overflow in a mean, makes the whole group invalid and reaches no gradient. T = 0 is fine. Without context.groups the
/// batch is one group. Means and first tokens couple the tokens of a group: not causal. Ids are taken to be the same
/// for all of a group. Daxberger et al. 2023 (Mobile V-MoE), arXiv:2309.04354; Gou et al. 2023 (MoCLE),
/// arXiv:2312.12379; Chen et al. 2023 (Octavius), arXiv:2311.02684; Zhang et al. 2023 (AdvMoE), arXiv:2308.10110.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <span>
#include <utility>

namespace sluice::inline SLUICE_ISA {

enum class group_source { mean_of_tokens, first_token, group_vector, ids };

template <typename Inner, group_source Source = group_source::mean_of_tokens>
class per_group_gate : public gate_decorator<Inner> {
  static constexpr bool reads_vectors = Source == group_source::group_vector;
  static constexpr bool reads_tokens = Source == group_source::mean_of_tokens || Source == group_source::first_token;

public:
  using scalar = typename Inner::scalar;
  static constexpr bool causal = is_causal<Inner> && !reads_tokens;
  static constexpr bool shows_nan = false;

  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> vectors;                         ///< [G,F] v
    matrix_buffer<scalar> logits;                          ///< [G,E]
    matrix_buffer<scalar> dlogits;                         ///< [G,E]
    matrix_buffer<scalar> dvectors;                        ///< [G,F]
    token_screen<scalar> screen;                           ///< groups without tokens, and NaN among the vectors
    buffer<index_t> count;                                 ///< [G] tokens that the vector stands for
    buffer<index_t> first;                                 ///< [G] the first of them
    buffer<std::uint8_t> counts;                           ///< [T] 1 where the token is one of them
    buffer<std::uint8_t> used;                             ///< [G] 1 where there is one
    buffer<index_t> token_ids, modality_ids, cluster_ids;  ///< [G]

    /// dv [G,F] after backward: what group_features get.
    const matrix_buffer<scalar>& group_gradient() const noexcept { return dvectors; }
  };

  /// The inner gate is one for tokens.
  explicit per_group_gate(Inner inner)
    requires(!reads_vectors)
      : per_group_gate(std::move(inner), 0) {}
  /// The inner gate reads vectors of a group; tokens have width D.
  per_group_gate(index_t inputs, Inner inner)
    requires(reads_vectors)
      : per_group_gate(std::move(inner), inputs) {
    if (inputs < 1) throw_invalid("per_group_gate needs D >= 1, not ", inputs);
  }
  per_group_gate(index_t inputs, index_t experts)
    requires(!reads_vectors && std::constructible_from<Inner, index_t, index_t>)
      : per_group_gate(Inner(inputs, experts)) {}

  index_t inputs() const noexcept { return reads_vectors ? inputs_ : this->inner().inputs(); }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    find_groups(context, x.rows(), t);
    gather(x, context, t);
    const routing_context<scalar> groups = of_groups(context, t);
    t.logits.resize(t.used.size(), this->experts());
    t.screen.score(
        t.vectors.map(), groups,
        [&](tokens_in<scalar> seen) { this->inner().forward(seen, t.screen.visible(groups), t.logits.map(), t.inner); },
        [&](index_t g) { return any_nan(t.logits.row(g), this->experts()); }, sluice::shows_nan<Inner>);
    t.screen.spoil_invalid(t.logits);
    for (index_t g = 0; g < t.used.size(); ++g) {
      const token_range group = context.group(g, x.rows());
      for (index_t token = group.begin; token < group.end; ++token)
        if (t.counts[token])
          std::copy_n(t.logits.row(g), this->experts(), &logits(token, 0));
        else
          logits.row(token).setZero();
    }
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    const routing_context<scalar> groups = of_groups(context, t);
    t.dlogits.set_zero(t.used.size(), this->experts());
    for (index_t g = 0; g < t.used.size(); ++g) {
      const token_range group = context.group(g, x.rows());
      for (index_t token = group.begin; token < group.end; ++token)
        if (t.counts[token])
          kernel::add_scaled(scalar(1), dlogits.data() + token * dlogits.outerStride(), t.dlogits.row(g),
                             this->experts());
    }
    t.screen.clear_hidden(t.dlogits);
    t.dvectors.set_zero(t.vectors.rows(), t.vectors.cols());
    this->inner().backward(t.screen.of(t.vectors.map()), t.screen.visible(groups), t.dlogits.map(), t.inner,
                           t.dvectors.map());
    if constexpr (reads_tokens) scatter(context, t, dx);
  }

private:
  per_group_gate(Inner&& inner, index_t inputs) : gate_decorator<Inner>(std::move(inner)), inputs_(inputs) {}

  void find_groups(const routing_context<scalar>& context, index_t tokens, tape& t) const {
    const index_t groups = context.group_count();
    t.counts.resize(tokens);
    t.used.resize(groups);
    for (auto* numbers : {&t.count, &t.first}) numbers->assign(groups, 0);
    for (index_t g = 0; g < groups; ++g) {
      const token_range group = context.group(g, tokens);
      for (index_t token = group.begin; token < group.end; ++token) {
        t.counts[token] = !context.is_padding(token);
        if (t.counts[token] && t.count[g]++ == 0) t.first[g] = token;
      }
      t.used[g] = t.count[g] > 0;
    }
    const auto pick = [&](std::span<const index_t> ids, buffer<index_t>& own) {
      own.resize(ids.empty() && tokens > 0 ? 0 : groups);  // of no tokens nobody can say whether ids were given
      for (index_t g = 0; g < own.size(); ++g) own[g] = t.used[g] ? ids[static_cast<std::size_t>(t.first[g])] : 0;
    };
    pick(context.token_ids, t.token_ids);
    pick(context.modality_ids, t.modality_ids);
    pick(context.cluster_ids, t.cluster_ids);
  }

  /// The context of a batch in which a row is a group.
  static routing_context<scalar> of_groups(const routing_context<scalar>& context, const tape& t) {
    routing_context<scalar> groups = context;
    groups.groups = {};
    groups.token_mask = t.used.span();
    groups.token_ids = t.token_ids.span();
    groups.modality_ids = t.modality_ids.span();
    groups.cluster_ids = t.cluster_ids.span();
    groups.protected_tokens = {};
    groups.sequences = {};
    groups.expert_ids = {};
    groups.expert_weights = groups.previous_logits = groups.group_features = {};
    groups.features = reads_vectors ? optional_matrix<scalar>{} : context.group_features;
    return groups;
  }

  void gather(tokens_in<scalar> x, const routing_context<scalar>& context, tape& t) const {
    const index_t groups = t.used.size(), width = this->inner().inputs();
    t.vectors.resize(groups, width);
    if constexpr (reads_vectors) {
      const auto& given = context.group_features;
      if (!given || given.rows != groups || given.cols != width)
        throw_invalid("per_group_gate needs routing_context.group_features [G, F] = [", groups, ", ", width, "], not [",
                      given.rows, ", ", given.cols, "]");
      t.vectors.map() = given.map();
    } else if constexpr (!reads_tokens) {
      t.vectors.map().setZero();
    } else {
      gather_tokens(x, context, t);
    }
  }

  void gather_tokens(tokens_in<scalar> x, const routing_context<scalar>& context, tape& t) const {
    const index_t groups = t.used.size(), width = this->inner().inputs();
    context.executor.parallel_blocks(groups, 1, x.rows() * width / groups, [&](index_t g, index_t) {
      scalar* vector = t.vectors.row(g);
      std::fill_n(vector, width, scalar(0));
      if (!t.used[g]) return;
      const auto row = [&](index_t token) { return x.data() + token * x.outerStride(); };
      if constexpr (Source == group_source::first_token) {
        std::copy_n(row(t.first[g]), width, vector);
      } else {
        const token_range group = context.group(g, x.rows());
        for (index_t token = group.begin; token < group.end; ++token)
          if (t.counts[token]) kernel::add_scaled(scalar(1), row(token), vector, width);
        for (index_t d = 0; d < width; ++d) vector[d] /= static_cast<scalar>(t.count[g]);
      }
    });
  }

  void scatter(const routing_context<scalar>& context, const tape& t, tokens_out<scalar> dx) const {
    for (index_t g = 0; g < t.used.size(); ++g) {
      if (!t.used[g]) continue;
      const auto add = [&](index_t token, scalar share) {
        kernel::add_scaled(share, t.dvectors.row(g), dx.data() + token * dx.outerStride(), t.dvectors.cols());
      };
      if constexpr (Source == group_source::first_token) {
        add(t.first[g], scalar(1));
      } else {
        const token_range group = context.group(g, dx.rows());
        for (index_t token = group.begin; token < group.end; ++token)
          if (t.counts[token]) add(token, 1 / static_cast<scalar>(t.count[g]));
      }
    }
  }

  index_t inputs_;
};

static_assert(DifferentiableGate<per_group_gate<linear_gate<float>>>);
static_assert(DifferentiableGate<per_group_gate<linear_gate<float>, group_source::group_vector>>);

}  // namespace sluice::inline SLUICE_ISA
