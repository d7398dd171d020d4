/// The k items of least cost among those that were offered, in memory of the caller.
///
/// Equal costs: the lower id comes first, so that the result does not depend on the order of offers; what costs NaN is
/// never taken. A heap with the worst in front: what does not beat it costs one comparison.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <limits>
#include <span>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct costed_item {
  Scalar cost;
  index_t id;

  friend bool operator<(const costed_item& a, const costed_item& b) noexcept {
    const auto cost_a = order_key(a.cost), cost_b = order_key(b.cost);
    return cost_a != cost_b ? cost_a < cost_b : a.id < b.id;
  }
};

template <FloatOrDouble Scalar>
class best_items {
public:
  best_items() = default;
  /// Room for k items, of which the first `taken` were taken by another that had it.
  explicit best_items(std::span<costed_item<Scalar>> room, std::size_t taken = 0) noexcept
      : room_(room), count_(taken) {}

  bool is_full() const noexcept { return count_ == room_.size(); }
  /// No item that costs more can be taken any more.
  Scalar limit() const noexcept {
    if (room_.empty()) return -std::numeric_limits<Scalar>::infinity();
    return is_full() ? room_.front().cost : std::numeric_limits<Scalar>::infinity();
  }

  void offer(Scalar cost, index_t id) {
    if (is_nan(cost) || room_.empty()) return;
    const costed_item<Scalar> item{cost, id};
    const auto begin = room_.begin();
    if (count_ == room_.size()) {
      if (!(item < room_.front())) return;
      std::pop_heap(begin, room_.end());
      room_.back() = item;
      std::push_heap(begin, room_.end());
    } else {
      room_[count_++] = item;
      std::push_heap(begin, begin + static_cast<std::ptrdiff_t>(count_));
    }
  }
  void offer(std::span<const costed_item<Scalar>> items) {
    for (const auto& item : items) offer(item.cost, item.id);
  }

  /// What was taken, in no order.
  std::span<const costed_item<Scalar>> taken() const noexcept { return room_.first(count_); }
  /// What was taken, best first; nothing can be offered any more.
  std::span<const costed_item<Scalar>> sorted() {
    std::sort(room_.begin(), room_.begin() + static_cast<std::ptrdiff_t>(count_));
    return taken();
  }

private:
  std::span<costed_item<Scalar>> room_;
  std::size_t count_ = 0;
};

}  // namespace sluice::inline SLUICE_ISA
