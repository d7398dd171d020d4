/// Optimal transport between n suppliers of one unit each and K takers that take given amounts, exactly.
///
///   minimise   sum over t, k of flow[k,t] cost[t,k]
///   flow >= 0,   sum over k of flow[k,t] = 1,   sum over t of flow[k,t] = amount[k]
///
/// The amounts add up to n. Suppliers come in one by one and send what they have along the cheapest way: to a taker
/// with room, or to one that hands on what another supplier sent it. Ways are found among the K takers (Dijkstra on
/// reduced costs), where the way from a to b costs what a's cheapest supplier loses by moving. Each way ends a
/// supplier, fills a taker or empties a flow. Potentials u of the takers come with it: u[k] + v[t] <= cost[t,k], equal
/// where something flows; u is the derivative of the minimum by the amounts, up to a constant (one of them, where
/// several are). Work about n (K^2 + n); memory three numbers for each t, k or pair of takers. Everything in double.
/// Equal costs: lower takers first.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA {

class exact_transport {
public:
  /// cost [n,K]; the amounts are at least 0. Throws std::invalid_argument if they do not add up to n.
  void solve(const matrix_buffer<double>& cost, const buffer<double>& amounts) {
    const index_t n = cost.rows(), takers = cost.cols();
    double total = 0;
    for (const double amount : amounts) total += amount;
    if (amounts.size() != takers ||
        !((std::abs)(total - static_cast<double>(n)) <= 1e-3 * static_cast<double>(n) + 1e-9))
      throw_invalid("transport of ", n, " units to ", takers, " takers needs as many amounts, which add up to ", n,
                    ", not to ", total);
    // Amounts may come from numbers of less precision.
    room_.resize(takers);
    for (index_t k = 0; k < takers; ++k) room_[k] = n == 0 ? 0 : amounts[k] * static_cast<double>(n) / total;
    flow_.set_zero(takers, n);
    loss_.resize(takers, takers);
    moved_.resize(takers, takers);
    std::fill_n(moved_.data(), moved_.size(), index_t{-1});
    potential_.assign(takers, 0);
    distance_.resize(takers);
    previous_.resize(takers);
    done_.resize(takers);
    for (index_t t = 0; t < n; ++t) send(cost, t);
    sum_ = 0;
    for (index_t k = 0; k < takers; ++k)
      for (index_t t = 0; t < n; ++t) sum_ += flow_(k, t) * cost(t, k);
  }

  void reserve(index_t n, index_t takers) {
    flow_.reserve(takers, n);
    loss_.reserve(takers, takers);
    moved_.reserve(takers, takers);
    for (auto* numbers : {&room_, &potential_, &distance_}) numbers->reserve(takers);
    previous_.reserve(takers);
    done_.reserve(takers);
  }

  double total() const noexcept { return sum_; }                           ///< the minimum
  const matrix_buffer<double>& flow() const noexcept { return flow_; }     ///< [K,n]
  const buffer<double>& potential() const noexcept { return potential_; }  ///< u [K]

private:
  static constexpr double tiny = 1e-13;

  void send(const matrix_buffer<double>& cost, index_t t) {
    double supply = 1;
    while (supply > tiny) {
      const index_t end = find_way(cost, t);
      if (end < 0) break;  // no room is left anywhere but for roundings
      double amount = (std::min)(supply, room_[end]);
      for (index_t b = end; previous_[b] >= 0; b = previous_[b])
        amount = (std::min)(amount, flow_(previous_[b], moved_(previous_[b], b)));
      room_[end] -= amount;
      if (room_[end] < tiny) room_[end] = 0;
      supply -= amount;
      index_t b = end;
      for (; previous_[b] >= 0; b = previous_[b]) {
        const index_t a = previous_[b], other = moved_(a, b);
        flow_(a, other) -= amount;
        if (flow_(a, other) < tiny) flow_(a, other) = 0;
        flow_(b, other) += amount;
      }
      flow_(b, t) += amount;
      for (b = end; b >= 0; b = previous_[b]) update_losses(cost, b);
    }
  }

  /// The taker with room that the cheapest way of supplier t leads to, in previous_; -1: there is none.
  index_t find_way(const matrix_buffer<double>& cost, index_t t) {
    const index_t takers = cost.cols();
    constexpr double infinity = (std::numeric_limits<double>::max)();
    double start = infinity;
    for (index_t k = 0; k < takers; ++k) start = (std::min)(start, cost(t, k) - potential_[k]);
    for (index_t k = 0; k < takers; ++k) {
      distance_[k] = cost(t, k) - potential_[k] - start;
      previous_[k] = -1;
      done_[k] = 0;
    }
    index_t end = -1;
    for (index_t step = 0; step < takers && end < 0; ++step) {
      index_t a = -1;
      for (index_t k = 0; k < takers; ++k)
        if (done_[k] == 0 && (a < 0 || distance_[k] < distance_[a])) a = k;
      done_[a] = 1;
      if (room_[a] > 0) {
        end = a;
        break;
      }
      for (index_t b = 0; b < takers; ++b) {
        if (done_[b] != 0 || moved_(a, b) < 0) continue;
        const double further = distance_[a] + (std::max)(0.0, loss_(a, b) + potential_[a] - potential_[b]);
        if (further < distance_[b]) distance_[b] = further, previous_[b] = a;
      }
    }
    if (end < 0) return -1;
    for (index_t k = 0; k < takers; ++k) potential_[k] += (std::min)(distance_[k], distance_[end]);
    return end;
  }

  /// What each of a's suppliers would lose by moving, the least of them.
  void update_losses(const matrix_buffer<double>& cost, index_t a) {
    const index_t takers = cost.cols();
    std::fill_n(moved_.row(a), takers, index_t{-1});
    for (index_t t = 0; t < cost.rows(); ++t) {
      if (flow_(a, t) == 0) continue;
      for (index_t b = 0; b < takers; ++b) {
        const double loss = cost(t, b) - cost(t, a);
        if (b == a || (moved_(a, b) >= 0 && !(loss < loss_(a, b)))) continue;
        loss_(a, b) = loss;
        moved_(a, b) = t;
      }
    }
  }

  matrix_buffer<double> flow_;
  matrix_buffer<double> loss_;    ///< [K,K]
  matrix_buffer<index_t> moved_;  ///< [K,K] who loses that; -1: nobody is there
  buffer<double> room_;           ///< [K]
  buffer<double> potential_;      ///< [K]
  buffer<double> distance_;       ///< [K]
  buffer<index_t> previous_;      ///< [K]
  buffer<std::uint8_t> done_;     ///< [K]
  double sum_ = 0;
};

}  // namespace sluice::inline SLUICE_ISA
