/// Rows of several plans over one bank, joined: an expert that several plans send a token to sees it once.
///
///   plans q = 0 .. Q-1 with rows i   ->   by_expert(): rows of the bank; of(q)[i]: which of them row i is
///   shared   rows of plans that send tokens as they are, with the same expert and token
///   not      rows of any other plan (scaled tokens, mixtures of tokens): each stays a row of its own
///   spread   bank's row = plan's row, by the first plan that has it, its owner        take   the adjoint: others get zero
///   collect  plan's row = bank's row                                                  add    the adjoint
///
/// An expert has its rows in the order in which the plans, one after the other, name them. Within a plan a token has an
/// expert at most once, so its rows are different ones of the bank. Nothing depends on the executor. Work is that of
/// the rows, and one step an expert. No plans with rows is fine.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/expert_rows.hpp>

#include <algorithm>
#include <span>

namespace sluice::inline SLUICE_ISA {

class joined_rows {
public:
  /// What of a plan is joined.
  struct part {
    expert_rows by_expert;
    const index_t* tokens = nullptr;  ///< of rows that may be shared, which are tokens as they are
  };

  /// Room for so many plans with so many rows in all.
  void reserve(index_t plans, index_t tokens, index_t experts, index_t rows) {
    first_.reserve(plans + 1);
    owned_.reserve(plans);
    row_of_.reserve(tokens);
    offsets_.reserve(experts + 1);
    for (auto* numbers : {&place_, &owner_}) numbers->reserve(rows);
  }

  /// part_of(q) says what plan q is made of.
  template <typename F>
  void join(index_t plans, index_t tokens, index_t experts, F&& part_of) {
    first_.assign(plans + 1, 0);
    for (index_t q = 0; q < plans; ++q) first_[q + 1] = first_[q] + part_of(q).by_expert.rows();
    place_.resize(first_[plans]);
    owner_.clear();
    owned_.assign(plans, 0);
    offsets_.assign(experts + 1, 0);
    row_of_.assign(tokens, -1);
    for (index_t e = 0; e < experts; ++e) {
      for (index_t q = 0; q < plans; ++q) {
        const part p = part_of(q);
        const auto [expert, begin, end] = p.by_expert.of(e);
        for (index_t i = begin; i < end; ++i) {
          index_t row = p.tokens == nullptr ? -1 : row_of_[p.tokens[i]];
          if (row < offsets_[e]) {  // an earlier expert's, or none
            row = owner_.size();
            owner_.push_back(q);
            ++owned_[q];
            if (p.tokens != nullptr) row_of_[p.tokens[i]] = row;
          }
          place_[first_[q] + i] = row;
        }
      }
      offsets_[e + 1] = owner_.size();
    }
  }

  index_t rows() const noexcept { return owner_.size(); }
  expert_rows by_expert() const noexcept { return expert_rows(offsets_.span()); }
  std::span<const index_t> of(index_t q) const noexcept {
    return place_.span().subspan(as_size(first_[q]), as_size(first_[q + 1] - first_[q]));
  }
  /// Whether any row is this plan's to write.
  bool owns_rows(index_t q) const noexcept { return owned_[q] > 0; }

  template <typename Scalar>
  void spread(index_t q, const matrix_buffer<Scalar>& own, matrix_buffer<Scalar>& all,
              const executor_ref& executor) const {
    for_each_row(q, own.cols(), executor, [&](index_t i, index_t row) {
      if (owner_[row] == q) std::copy_n(own.row(i), own.cols(), all.row(row));
    });
  }
  template <typename Scalar>
  void collect(index_t q, const matrix_buffer<Scalar>& all, matrix_buffer<Scalar>& own,
               const executor_ref& executor) const {
    for_each_row(q, own.cols(), executor,
                 [&](index_t i, index_t row) { std::copy_n(all.row(row), own.cols(), own.row(i)); });
  }
  template <typename Scalar>
  void add(index_t q, const matrix_buffer<Scalar>& own, matrix_buffer<Scalar>& all,
           const executor_ref& executor) const {
    for_each_row(q, own.cols(), executor, [&](index_t i, index_t row) {
      for (index_t c = 0; c < own.cols(); ++c) all.row(row)[c] += own.row(i)[c];
    });
  }
  template <typename Scalar>
  void take(index_t q, const matrix_buffer<Scalar>& all, matrix_buffer<Scalar>& own,
            const executor_ref& executor) const {
    for_each_row(q, own.cols(), executor, [&](index_t i, index_t row) {
      if (owner_[row] == q)
        std::copy_n(all.row(row), own.cols(), own.row(i));
      else
        std::fill_n(own.row(i), own.cols(), Scalar(0));
    });
  }

private:
  template <typename F>
  void for_each_row(index_t q, index_t work, const executor_ref& executor, F&& f) const {
    const auto places = of(q);
    executor.parallel_each(static_cast<index_t>(places.size()), work, [&](index_t i) { f(i, places[as_size(i)]); });
  }

  buffer<index_t> first_;    ///< [Q+1] where the rows of a plan begin
  buffer<index_t> place_;    ///< of every plan's rows, which of the bank's they are
  buffer<index_t> owner_;    ///< of the bank's rows
  buffer<index_t> owned_;    ///< [Q] how many
  buffer<index_t> offsets_;  ///< [E+1]
  buffer<index_t> row_of_;   ///< [T] scratch: the row that a token got last
};

}  // namespace sluice::inline SLUICE_ISA
