/// Whose rows are whose in a batch that is grouped by expert: what a bank of experts is told.
///
///   for (const auto& [expert, begin, end] : rows) ...          the experts that have rows, ascending, and their rows
///   const auto [expert, begin, end] = rows.of(e);              the rows of expert e, perhaps none
///   rows.only(8, 4)                                            the same without the rows of all but four experts
///
/// Rows are numbered through the batch and those of neighbours are adjacent: all together they are
/// first_row() .. last_row(). Going through the experts that have rows costs nothing for the others, of which there may
/// be a million; of(e) searches, so ask it for single experts. A view: the arrays belong to a plan or to the caller.
#pragma once

#include <sluice/core/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <iterator>
#include <span>

namespace sluice::inline SLUICE_ISA {

/// Consecutive rows of one expert.
struct row_range {
  index_t expert;
  index_t begin;
  index_t end;
  index_t size() const noexcept { return end - begin; }
};

class expert_rows {
public:
  class iterator;

  expert_rows() = default;

  /// E+1 numbers: expert e has the rows offsets[e] .. offsets[e+1].
  template <typename Offsets>
    requires std::convertible_to<const Offsets&, std::span<const index_t>>
  expert_rows(const Offsets& offsets) noexcept {
    const std::span<const index_t> numbers = offsets;
    if (numbers.empty()) return;
    offsets_ = numbers.data();
    listed_ = experts_ = static_cast<index_t>(numbers.size()) - 1;
  }

  /// Of E experts only those listed, in ascending order: active[a] has the rows offsets[a] .. offsets[a+1].
  expert_rows(index_t experts, std::span<const index_t> active, std::span<const index_t> offsets) noexcept
      : offsets_(offsets.data()), listed_(static_cast<index_t>(active.size())), experts_(experts) {
    if (listed_ < experts_) active_ = active.empty() ? &no_rows : active.data();
  }

  index_t experts() const noexcept { return experts_; }
  index_t first_row() const noexcept { return offsets_[0]; }
  index_t last_row() const noexcept { return offsets_[listed_]; }
  index_t rows() const noexcept { return last_row() - first_row(); }

  iterator begin() const noexcept;
  std::default_sentinel_t end() const noexcept { return {}; }

  row_range of(index_t expert) const noexcept {
    const index_t a = place_of(expert);
    const bool is_listed = a < listed_ && expert_at(a) == expert;
    return {expert, offsets_[a], offsets_[is_listed ? a + 1 : a]};
  }
  index_t load(index_t expert) const noexcept { return of(expert).size(); }

  /// The rows of the experts first .. first + count; all experts keep their numbers.
  expert_rows only(index_t first, index_t count) const noexcept {
    expert_rows part = *this;
    const index_t a = place_of(first);
    part.listed_ = place_of(first + count) - a;
    part.offsets_ = offsets_ + a;
    if (active_ == nullptr)
      part.shift_ = shift_ - a;
    else
      part.active_ = active_ + a;
    return part;
  }
  /// The same, and the experts are numbered from 0.
  expert_rows slice(index_t first, index_t count) const noexcept {
    expert_rows part = only(first, count);
    part.experts_ = count;
    part.shift_ += first;
    return part;
  }

private:
  static constexpr index_t no_rows = 0;

  index_t expert_at(index_t a) const noexcept { return (active_ == nullptr ? a : active_[a]) - shift_; }
  /// The first listed expert that is not before this one.
  index_t place_of(index_t expert) const noexcept {
    if (active_ == nullptr) return std::clamp<index_t>(expert + shift_, 0, listed_);
    return std::lower_bound(active_, active_ + listed_, expert + shift_) - active_;
  }

  const index_t* active_ = nullptr;  ///< null: those from -shift_ on
  const index_t* offsets_ = &no_rows;
  index_t listed_ = 0;
  index_t experts_ = 0;
  index_t shift_ = 0;  ///< an expert's number in the list is so much higher
};

class expert_rows::iterator {
public:
  using value_type = row_range;
  using difference_type = std::ptrdiff_t;

  iterator() = default;
  explicit iterator(const expert_rows& rows) noexcept : rows_(rows) { skip_empty(); }

  row_range operator*() const noexcept { return {rows_.expert_at(a_), rows_.offsets_[a_], rows_.offsets_[a_ + 1]}; }
  iterator& operator++() noexcept {
    ++a_;
    skip_empty();
    return *this;
  }
  iterator operator++(int) noexcept {
    iterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(std::default_sentinel_t) const noexcept { return a_ == rows_.listed_; }

private:
  void skip_empty() noexcept {
    while (a_ < rows_.listed_ && rows_.offsets_[a_] == rows_.offsets_[a_ + 1]) ++a_;
  }

  expert_rows rows_;
  index_t a_ = 0;
};

inline expert_rows::iterator expert_rows::begin() const noexcept { return iterator(*this); }

static_assert(std::input_iterator<expert_rows::iterator>);

}  // namespace sluice::inline SLUICE_ISA
