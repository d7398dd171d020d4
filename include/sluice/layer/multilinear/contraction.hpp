/// How a factorised tensor of experts is contracted, once gates and token have become short vectors v_0 .. v_n.
///
///   W [N_1,..,N_n,I,O]: weights of N_1 .. N_n linear experts  y_o = sum a1_n1 .. an_nn z_i W[n1,..,nn,i,o] = (out s)_o
///   v_l = F_l a_l for the gates of level l, v_n = F_n z;  s a function of them, linear in each:
///
///   elementwise_contraction  s = v_0 * v_1 * .. * v_n                              CP, rank R
///   outer_contraction        s = v_0 (x) v_1 (x) .. (x) v_n                        Tucker; the last index runs fastest
///   ring_contraction         s = V_0 V_1 .. V_n, V_l [r_l, r_(l+1)] row by row     tensor ring; r_0 = 1: tensor train
///
/// A policy says how many numbers v_l and s have, and contracts one token's; `scratch` holds scratch() numbers.
/// backward overwrites dv; neutral(l, i) is number i of a v_l that leaves the product of the others as it is, or of
/// ones. The layer: multilinear_layer.hpp. Oldfield et al. 2024 (muMoE), arXiv:2402.12550.
#pragma once

#include <sluice/core/checked_size.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/types.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class elementwise_contraction {
public:
  /// `levels` of gates. Throws std::invalid_argument unless both are at least 1.
  elementwise_contraction(index_t levels, index_t rank) : vectors_(levels + 1), rank_(rank) {
    if (levels < 1 || rank < 1)
      throw_invalid("a contraction needs levels and a rank >= 1, not ", levels, " and ", rank);
  }

  index_t vectors() const noexcept { return vectors_; }
  index_t width(index_t) const noexcept { return rank_; }
  index_t product() const noexcept { return rank_; }
  index_t neutral(index_t, index_t) const noexcept { return 1; }
  index_t scratch() const noexcept { return rank_; }

  template <typename Scalar>
  void contract(const Scalar* const* v, Scalar* s, Scalar*) const {
    std::copy_n(v[0], rank_, s);
    for (index_t l = 1; l < vectors_; ++l) multiply(s, v[l], s);
  }
  template <typename Scalar>
  void backward(const Scalar* const* v, const Scalar* ds, Scalar* const* dv, Scalar* rest) const {
    for (index_t l = 0; l < vectors_; ++l) {
      std::copy_n(ds, rank_, rest);
      for (index_t other = 0; other < vectors_; ++other)
        if (other != l) multiply<Scalar>(rest, v[other], rest);
      std::copy_n(rest, rank_, dv[l]);
    }
  }

private:
  template <typename Scalar>
  void multiply(const Scalar* a, const Scalar* b, Scalar* product) const {
    kernel::transform(
        rank_, [](const auto& u, const auto& w) { return u * w; }, product, a, b);
  }

  index_t vectors_, rank_;
};

class outer_contraction {
public:
  /// Lengths of v_0 .. v_n, at least two. Throws std::invalid_argument if one is below 1.
  explicit outer_contraction(std::vector<index_t> ranks) : ranks_(std::move(ranks)) {
    if (ranks_.size() < 2)
      throw_invalid("a contraction needs gates and a token: two ranks or more, not ", ranks_.size());
    for (const index_t rank : ranks_) {
      if (rank < 1) throw_invalid("a rank cannot be ", rank);
      product_ = checked_product(product_, rank);
    }
  }

  index_t vectors() const noexcept { return static_cast<index_t>(ranks_.size()); }
  index_t width(index_t l) const noexcept { return ranks_[as_size(l)]; }
  index_t product() const noexcept { return product_; }
  index_t neutral(index_t, index_t) const noexcept { return 1; }
  index_t scratch() const noexcept { return 2 * product_ + 2; }

  template <typename Scalar>
  void contract(const Scalar* const* v, Scalar* s, Scalar*) const {
    grow(v, 0, vectors(), s);
  }
  /// dv_l = sum over all other indices of ds times the other vectors.
  template <typename Scalar>
  void backward(const Scalar* const* v, const Scalar* ds, Scalar* const* dv, Scalar* room) const {
    for (index_t l = 0; l < vectors(); ++l) {
      index_t before = 1, after = product_ / width(l);
      for (index_t other = 0; other < l; ++other) before *= width(other);
      after /= before;
      Scalar* const left = room;
      Scalar* const right = room + before;
      grow(v, 0, l, left);
      grow(v, l + 1, vectors(), right);
      for (index_t i = 0; i < width(l); ++i) {
        dv[l][i] = 0;
        for (index_t b = 0; b < before; ++b)
          dv[l][i] += left[b] * kernel::dot(ds + (b * width(l) + i) * after, right, after);
      }
    }
  }

private:
  /// v_first (x) .. (x) v_(last - 1), 1 if there is none; from the back, so that it grows in place.
  template <typename Scalar>
  void grow(const Scalar* const* v, index_t first, index_t last, Scalar* s) const {
    index_t size = 1;
    s[0] = 1;
    for (index_t l = first; l < last; ++l) {
      for (index_t i = size; i-- > 0;) {
        const Scalar factor = s[i];
        for (index_t j = width(l); j-- > 0;) s[i * width(l) + j] = factor * v[l][j];
      }
      size *= width(l);
    }
  }

  std::vector<index_t> ranks_;
  index_t product_ = 1;
};

class ring_contraction {
public:
  /// r_0 .. r_(n+1): one more than vectors, at least three. Throws std::invalid_argument if one is below 1.
  explicit ring_contraction(std::vector<index_t> bonds) : bonds_(std::move(bonds)) {
    if (bonds_.size() < 3) throw_invalid("a ring needs gates and a token: three bonds or more, not ", bonds_.size());
    for (const index_t bond : bonds_) {
      if (bond < 1) throw_invalid("a bond cannot be ", bond);
      widest_ = (std::max)(widest_, bond);
    }
  }

  index_t vectors() const noexcept { return static_cast<index_t>(bonds_.size()) - 1; }
  index_t width(index_t l) const noexcept { return bond(l) * bond(l + 1); }
  index_t product() const noexcept { return bond(0) * bonds_.back(); }
  index_t neutral(index_t l, index_t i) const noexcept { return i / bond(l + 1) == i % bond(l + 1); }
  /// All products V_0 .. V_l, and a gradient.
  index_t scratch() const noexcept { return (vectors() + 2) * bond(0) * widest_; }

  template <typename Scalar>
  void contract(const Scalar* const* v, Scalar* s, Scalar* room) const {
    const Scalar* last = prefixes(v, room);
    std::copy_n(last, product(), s);
  }
  template <typename Scalar>
  void backward(const Scalar* const* v, const Scalar* ds, Scalar* const* dv, Scalar* room) const {
    static_cast<void>(prefixes(v, room));
    Scalar* d = room + vectors() * bond(0) * widest_;
    Scalar* next = d + bond(0) * widest_;
    std::copy_n(ds, product(), d);
    for (index_t l = vectors(); l-- > 0;) {
      const index_t from = bond(l), to = bond(l + 1);
      if (l == 0) {
        std::copy_n(d, width(0), dv[0]);
        return;
      }
      const Scalar* const before = room + (l - 1) * bond(0) * widest_;
      for (index_t i = 0; i < from; ++i)
        for (index_t j = 0; j < to; ++j) {
          Scalar sum = 0;
          for (index_t a = 0; a < bond(0); ++a) sum += before[a * from + i] * d[a * to + j];
          dv[l][i * to + j] = sum;
        }
      for (index_t a = 0; a < bond(0); ++a)
        for (index_t i = 0; i < from; ++i) next[a * from + i] = kernel::dot(d + a * to, v[l] + i * to, to);
      std::swap(d, next);
    }
  }

private:
  index_t bond(index_t l) const noexcept { return bonds_[as_size(l)]; }

  /// V_0 .. V_l for every l, the l-th at l r_0 widest; returns the last.
  template <typename Scalar>
  const Scalar* prefixes(const Scalar* const* v, Scalar* room) const {
    Scalar* place = room;
    std::copy_n(v[0], width(0), place);
    for (index_t l = 1; l < vectors(); ++l) {
      Scalar* const next = place + bond(0) * widest_;
      for (index_t a = 0; a < bond(0); ++a) {
        std::fill_n(next + a * bond(l + 1), bond(l + 1), Scalar(0));
        for (index_t i = 0; i < bond(l); ++i)
          kernel::add_scaled(place[a * bond(l) + i], v[l] + i * bond(l + 1), next + a * bond(l + 1), bond(l + 1));
      }
      place = next;
    }
    return place;
  }

  std::vector<index_t> bonds_;
  index_t widest_ = 1;
};

}  // namespace sluice::inline SLUICE_ISA
