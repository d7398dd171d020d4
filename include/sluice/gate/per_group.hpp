/// One decision a group: an inner gate scores one vector for every group of tokens, and all its tokens share it.
///
///   v[g] [G,F]   mean_of_tokens  mean of the group's tokens, without padding and tokens that hold NaN     Mobile V-MoE
///                first_token     the first of them, such as a class token
///                all_tokens      all of them, one behind the other: N tokens of width D, F = N D               UoE
///                group_vector    context.group_features[g]: an instruction, an image at lower resolution, given scores
///                ids             none (zeros): the inner gate reads ids alone                              MoCLE
///   logits[t] = gate(v)[g] for every token t of group g
///   dgate[g] = sum over the group's tokens of dlogits;  dv[g] goes back into x, or stays in tape.group_gradient()
///
/// The inner gate sees a batch of G rows: noise in it is drawn once a group, of ids it sees those of the group's first
/// token, and group_features that are not the vectors themselves are the features of its rows: joined_gate inside
/// scores an instruction and the mean of an image together. Equal logits give equal choices, so no rule needs to know;
/// noise of the router itself would tell tokens of a group apart. Hidden tokens have logits 0; a group of nothing else
/// is not scored. NaN in group_features, or overflow in a mean, makes the whole group invalid and reaches no gradient.
/// T = 0 is fine. Without context.groups the batch is one group. What is read of tokens couples those of a group: not
/// causal. Ids are taken to be the same for all of a group. Daxberger et al. 2023 (Mobile V-MoE), arXiv:2309.04354; Gou
/// et al. 2023 (MoCLE), arXiv:2312.12379; Chen et al. 2023 (Octavius), arXiv:2311.02684; Zhang et al. 2023 (AdvMoE),
/// arXiv:2308.10110; Yang et al. 2025 (Union of Experts), arXiv:2503.02495.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/group_vectors.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner, group_source Source = group_source::mean_of_tokens>
class per_group_gate : public gate_decorator<Inner> {
  static constexpr bool reads_vectors = Source == group_source::group_vector;
  static constexpr bool reads_tokens = !reads_vectors && Source != group_source::ids;
  static constexpr bool has_other_width = reads_vectors || Source == group_source::all_tokens;

public:
  using scalar = typename Inner::scalar;
  static constexpr bool causal = is_causal<Inner> && !reads_tokens;
  static constexpr bool shows_nan = false;

  struct tape : decorated_tape<Inner> {
    group_vectors<scalar> groups;   ///< v, and which tokens it stands for
    matrix_buffer<scalar> logits;   ///< [G,E]
    matrix_buffer<scalar> dlogits;  ///< [G,E]
    token_screen<scalar> screen;    ///< groups without tokens, and NaN among the vectors

    /// dv [G,F] after backward: what group_features get.
    const matrix_buffer<scalar>& group_gradient() const noexcept { return groups.gradient(); }
  };

  /// The inner gate is one for tokens.
  explicit per_group_gate(Inner inner)
    requires(!has_other_width)
      : per_group_gate(std::move(inner), 0) {}
  /// The inner gate reads vectors of a group, or its N tokens together; tokens have width D.
  per_group_gate(index_t inputs, Inner inner)
    requires(has_other_width)
      : per_group_gate(std::move(inner), inputs) {
    if (inputs < 1) throw_invalid("per_group_gate needs D >= 1, not ", inputs);
    if (Source == group_source::all_tokens && this->inner().inputs() % inputs != 0)
      throw_invalid("the gate of whole groups reads ", this->inner().inputs(), " numbers, which are no tokens of ",
                    inputs);
  }
  per_group_gate(index_t inputs, index_t experts)
    requires(!has_other_width && std::constructible_from<Inner, index_t, index_t>)
      : per_group_gate(Inner(inputs, experts)) {}

  index_t inputs() const noexcept { return has_other_width ? inputs_ : this->inner().inputs(); }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    t.groups.find(context, x.rows());
    t.groups.gather(Source, x, context, this->inner().inputs());
    const routing_context<scalar> groups = context_of_groups(context, t);
    t.logits.resize(t.groups.groups(), this->experts());
    t.screen.score(
        t.groups.vectors().map(), groups,
        [&](tokens_in<scalar> seen) { this->inner().forward(seen, t.screen.visible(groups), t.logits.map(), t.inner); },
        [&](index_t g) { return any_nan(t.logits.row(g), this->experts()); }, sluice::shows_nan<Inner>);
    t.screen.spoil_invalid(t.logits);
    for (index_t g = 0; g < t.groups.groups(); ++g) {
      const token_range group = context.group(g, x.rows());
      for (index_t token = group.begin; token < group.end; ++token)
        if (t.groups.counts(token))
          std::copy_n(t.logits.row(g), this->experts(), &logits(token, 0));
        else
          logits.row(token).setZero();
    }
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<scalar>, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    const routing_context<scalar> groups = context_of_groups(context, t);
    t.dlogits.set_zero(t.groups.groups(), this->experts());
    for (index_t g = 0; g < t.groups.groups(); ++g) {
      const token_range group = context.group(g, dx.rows());
      for (index_t token = group.begin; token < group.end; ++token)
        if (t.groups.counts(token))
          kernel::add_scaled(scalar(1), dlogits.data() + token * dlogits.outerStride(), t.dlogits.row(g),
                             this->experts());
    }
    t.screen.clear_hidden(t.dlogits);
    matrix_buffer<scalar>& dvectors = t.groups.clear_gradient();
    this->inner().backward(t.screen.of(t.groups.vectors().map()), t.screen.visible(groups), t.dlogits.map(), t.inner,
                           dvectors.map());
    t.groups.scatter(Source, context, dx);
  }

private:
  per_group_gate(Inner&& inner, index_t inputs) : gate_decorator<Inner>(std::move(inner)), inputs_(inputs) {}

  /// Vectors that are read as such are no features besides. Previous logits may be for a residual gate around this one.
  static routing_context<scalar> context_of_groups(routing_context<scalar> context, const tape& t) {
    if constexpr (!requires { t.previous_logits_gradient(); }) context.previous_logits = {};
    routing_context<scalar> groups = t.groups.context_of_groups(context);
    if constexpr (reads_vectors) groups.features = {};
    return groups;
  }

  index_t inputs_;
};

template <typename Inner>
per_group_gate(Inner) -> per_group_gate<Inner>;

static_assert(DifferentiableGate<per_group_gate<linear_gate<float>>>);
static_assert(DifferentiableGate<per_group_gate<linear_gate<float>, group_source::group_vector>>);

}  // namespace sluice::inline SLUICE_ISA
