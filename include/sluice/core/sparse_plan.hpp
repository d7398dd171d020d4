/// Routing plan: which token goes to which expert, with what weight. Every hard router produces one.
///
///   tokens T, experts E, assignments n (any number, known only after routing)
///   by expert:  by_expert() says which are whose; an expert's own stand in the order in which they were added (slots)
///   by token:   of_token(t) lists the assignments of token t in the order in which they were added (ranks)
///   y[t] = sum over the assignments i of token t of weight(i) * f_expert(i)(input_scale(i) * x[t])
///
/// A plan is a value: copy it, save it, look into it, change its weights, use it again with other experts. Weights need
/// not sum to 1. Assignments that a capacity limit refused are listed in dropped(). A token whose logits held NaN is
/// invalid: its output is NaN. A token without assignments has output zero.
///
/// Where most experts have no assignments, they cost neither time nor memory: a plan of one token among a million
/// experts is as small as one among a thousand.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/expert_order.hpp>
#include <sluice/core/expert_rows.hpp>
#include <sluice/core/routed_rows.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <concepts>
#include <span>

namespace sluice::inline SLUICE_ISA {

/// An assignment that a router asked for and a capacity limit refused.
template <typename Scalar>
struct dropped_assignment {
  index_t token;
  index_t expert;
  index_t rank;  ///< 0 = the token's first choice
  index_t slot;  ///< position in the expert's queue, at or past its capacity
  Scalar weight;
};

/// Gradients with respect to a sparse plan, one entry an assignment in plan order.
template <FloatOrDouble Scalar>
struct sparse_plan_gradient {
  buffer<Scalar> weight;
  buffer<Scalar> input_scale;  ///< empty if the plan has no input scales
};

template <FloatOrDouble Scalar>
class sparse_plan {
public:
  using scalar = Scalar;
  using gradient = sparse_plan_gradient<Scalar>;

  /// Empties the plan for a batch. Memory is kept. A router whose number of assignments depends on what is routed says
  /// the most that a batch of this size can have: the plan, and the layer for its experts, makes room for as many, so
  /// that no later batch of this size allocates.
  void reset(index_t tokens, index_t experts, index_t most_assignments = 0) {
    if (tokens < 0 || experts < 1)
      throw_invalid("a plan needs T >= 0 and E >= 1, not T = ", tokens, " and E = ", experts);
    tokens_ = tokens;
    experts_ = experts;
    pending_.clear();
    order_.clear();
    dropped_.clear();
    invalid_.clear();
    has_input_scale_ = false;
    most_ = 0;
    invalid_.reserve(tokens);
    reserve(most_assignments);
  }
  /// Raises the most assignments that a batch of this size can have.
  void reserve(index_t most_assignments) {
    reserve_rows(most_assignments);
    pending_.reserve(most_);
    order_.reserve(most_, experts_);
  }
  void reserve_dropped(index_t most_dropped) { dropped_.reserve(most_dropped); }

  /// Adds an assignment. Within an expert the order of calls is the order of slots; within a token ranks must ascend.
  void add(index_t token, index_t expert, Scalar weight, index_t rank = 0, Scalar input_scale = Scalar(1)) {
    pending_.push_back({token, expert, rank, weight, input_scale});
    has_input_scale_ |= input_scale != Scalar(1);
  }
  void add_dropped(const dropped_assignment<Scalar>& refused) { dropped_.push_back(refused); }
  /// Marks a token whose logits held NaN.
  void mark_invalid(index_t token) { invalid_.push_back(token); }
  /// Says that inputs are scaled, so that gradients of the scales are wanted even where a scale is 1.
  void use_input_scale() noexcept { has_input_scale_ = true; }

  /// Sorts what was added by expert and by token; call once after the last add. Throws std::invalid_argument if
  /// something is outside T and E: a router's mistake must not become a write outside the layer's memory.
  void finish() {
    const index_t n = pending_.size();
    check_invalid();
    token_offsets_.assign(tokens_ + 1, 0);
    for (const entry& a : pending_) {
      if (a.token < 0 || a.token >= tokens_ || a.expert < 0 || a.expert >= experts_)
        throw_invalid("a plan cannot send token ", a.token, " to expert ", a.expert, " with T = ", tokens_,
                      " and E = ", experts_);
      ++token_offsets_[a.token + 1];
    }
    for (index_t t = 0; t < tokens_; ++t) token_offsets_[t + 1] += token_offsets_[t];
    resize_rows(n);
    order_.find(n, experts_, [&](index_t i) { return pending_[i].expert; });
    for (index_t i = 0; i < n; ++i) by_token_[token_offsets_[pending_[i].token]++] = order_.place(i);
    // In the order of places: in that of adding, every array would be written at as many places as there are experts.
    for (index_t place = 0; place < n; ++place) {
      const entry& a = pending_[order_.source(place)];
      token_[place] = a.token;
      expert_[place] = a.expert;
      rank_[place] = a.rank;
      weight_[place] = a.weight;
      input_scale_[place] = a.input_scale;
    }
    // The offsets served as cursors.
    for (index_t t = tokens_; t > 0; --t) token_offsets_[t] = token_offsets_[t - 1];
    token_offsets_[0] = 0;
  }

  /// In place of add() and finish(): token t goes to every expert e with row(t)[e] > 0, by weight(t, e); of a token's
  /// experts the lowest has rank 0. row(t) is null where a token goes nowhere. What routers do that use many experts:
  /// nothing is sorted, for experts are gone through in order.
  template <typename Row, typename Weight>
  void assign_positive(Row row, Weight weight) {
    check_invalid();
    reserve_rows(tokens_ * experts_);
    for (auto* numbers : {&going_, &next_}) numbers->reserve(tokens_);
    order_.begin_experts(experts_);
    token_offsets_.resize(tokens_ + 1);
    token_offsets_[0] = 0;
    going_.clear();
    next_.clear();
    for (index_t t = 0; t < tokens_; ++t) {
      const Scalar* numbers = row(t);
      index_t count = 0;
      if (numbers != nullptr)
        for (index_t e = 0; e < experts_; ++e) count += numbers[e] > Scalar(0);
      token_offsets_[t + 1] = token_offsets_[t] + count;
      if (count == 0) continue;
      going_.push_back(t);
      next_.push_back(token_offsets_[t]);
    }
    resize_rows(token_offsets_[tokens_]);
    for (index_t e = 0, next = 0; e < experts_; ++e) {
      const index_t first = next;
      next = find_tokens(e, first, row);
      if (next == first) continue;
      order_.begin_expert(e, first);
      for (index_t i = first; i < next; ++i) {
        const index_t token = going_[token_[i]];
        index_t& own = next_[token_[i]];
        rank_[i] = own - token_offsets_[token];
        by_token_[own++] = i;
        token_[i] = token;
        weight_[i] = weight(token, e);
      }
      std::fill(expert_.begin() + first, expert_.begin() + next, e);
    }
    input_scale_.fill(Scalar(1));
    order_.end_experts(size());
  }

  index_t tokens() const noexcept { return tokens_; }
  index_t experts() const noexcept { return experts_; }
  /// Number of assignments, which is the number of rows that experts see.
  index_t size() const noexcept { return token_.size(); }
  index_t rows() const noexcept { return size(); }
  /// The most rows that a batch of this size can have, as far as the router said.
  index_t most_rows() const noexcept { return (std::max)(most_, size()); }
  index_t load(index_t expert) const noexcept { return by_expert().load(expert); }
  /// Who has which assignments. Of no experts before finish().
  expert_rows by_expert() const noexcept { return order_.rows(experts_); }

  index_t token(index_t i) const noexcept { return token_[i]; }
  index_t expert(index_t i) const noexcept { return expert_[i]; }
  index_t rank(index_t i) const noexcept { return rank_[i]; }
  /// Position in the expert's queue.
  index_t slot(index_t i) const noexcept { return i - by_expert().of(expert_[i]).begin; }
  Scalar weight(index_t i) const noexcept { return weight_[i]; }
  Scalar input_scale(index_t i) const noexcept { return input_scale_[i]; }
  bool has_input_scale() const noexcept { return has_input_scale_; }

  std::span<const index_t> of_token(index_t token) const noexcept {
    const index_t begin = token_offsets_[token];
    const index_t count = token_offsets_[token + 1] - begin;
    return by_token_.span().subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
  }
  std::span<const dropped_assignment<Scalar>> dropped() const noexcept { return dropped_.span(); }
  std::span<const index_t> invalid_tokens() const noexcept { return invalid_.span(); }

  /// Weights and input scales may be changed after finish(), for instance to re-route at test time.
  std::span<Scalar> weights() noexcept { return weight_.span(); }
  std::span<const Scalar> weights() const noexcept { return weight_.span(); }
  std::span<Scalar> input_scales() noexcept {
    has_input_scale_ = true;
    return input_scale_.span();
  }
  std::span<const Scalar> input_scales() const noexcept { return input_scale_.span(); }

  /// What a bank needs to run the plan.
  routed_rows<Scalar> routed() const noexcept {
    return {by_expert(), true, token_.data(), weight_.data(), has_input_scale_ ? input_scale_.data() : nullptr};
  }

  /// The plan as a dense [T,E] matrix of weights: zero where token and expert do not meet.
  matrix<Scalar> dense_weights() const {
    matrix<Scalar> dense = matrix<Scalar>::Zero(tokens_, experts_);
    for (index_t i = 0; i < size(); ++i) dense(token_[i], expert_[i]) += weight_[i];
    return dense;
  }

  /// Throws std::invalid_argument if a token has an expert twice. For plans that were made by hand.
  void validate() const {
    for (index_t t = 0; t < tokens_; ++t) {
      const auto own = of_token(t);
      for (std::size_t a = 0; a < own.size(); ++a)
        for (std::size_t b = a + 1; b < own.size(); ++b)
          if (expert_[own[a]] == expert_[own[b]]) throw_invalid("token ", t, " has expert ", expert_[own[a]], " twice");
    }
  }

private:
  struct entry {
    index_t token;
    index_t expert;
    index_t rank;
    Scalar weight;
    Scalar input_scale;
  };

  void check_invalid() const {
    for (const index_t token : invalid_)
      if (token < 0 || token >= tokens_) throw_invalid("a plan cannot mark token ", token, " with T = ", tokens_);
  }

  void reserve_rows(index_t most) {
    most_ = (std::max)(most_, most);
    for (auto* numbers : {&token_, &expert_, &rank_, &by_token_}) numbers->reserve(most_);
    for (auto* numbers : {&weight_, &input_scale_}) numbers->reserve(most_);
  }
  void resize_rows(index_t count) {
    for (auto* numbers : {&token_, &expert_, &rank_, &by_token_}) numbers->resize(count);
    for (auto* numbers : {&weight_, &input_scale_}) numbers->resize(count);
  }

  /// Writes into token_ from `first` on which of the tokens in going_ go to an expert; returns where they end. Without
  /// a branch, which nobody could foresee: every token is written and stays if it goes there.
  template <typename Row>
  index_t find_tokens(index_t e, index_t first, Row& row) {
    const index_t n = going_.size(), end = size();
    index_t next = first;
    for (index_t j = 0; j < n && next < end; ++j) {
      token_[next] = j;
      next += row(going_[j])[e] > Scalar(0);
    }
    return next;
  }

  index_t tokens_ = 0;
  index_t experts_ = 0;
  index_t most_ = 0;
  bool has_input_scale_ = false;
  buffer<entry> pending_;
  expert_order order_;
  buffer<index_t> going_;  ///< of assign_positive(): the tokens that go anywhere
  buffer<index_t> next_;   ///< and the next place of each in by_token_
  buffer<index_t> token_offsets_;
  buffer<index_t> by_token_;
  buffer<index_t> token_;
  buffer<index_t> expert_;
  buffer<index_t> rank_;
  buffer<Scalar> weight_;
  buffer<Scalar> input_scale_;
  buffer<dropped_assignment<Scalar>> dropped_;
  buffer<index_t> invalid_;
};

}  // namespace sluice::inline SLUICE_ISA
