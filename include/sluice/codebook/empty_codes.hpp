/// What becomes of codes that no token went to, between the sums of a round of k-means and its means.
///
///   keep_codes        they stay where they are
///   farthest_tokens   each takes the token farthest from the code it went to, the next takes the next farthest; the
///                     token leaves the mean of its code. A token that is alone, or at its code, is not taken: such
///                     codes stay. As in scikit-learn, which takes those that are alone too.
///   split_codes       each splits a code that is drawn in proportion to the number of its tokens but one: both take
///                     its mean times 1 +- 1/1024, column by column by turns, and share its tokens. As in faiss.
///
/// Codes are looked at in ascending order. A rule of your own is called as these are, with the round and its sums: a
/// code's mean will be sums over weights, and one whose weight is zero stays. Equal bits for any thread count.
#pragma once

#include <sluice/codebook/code_sums.hpp>
#include <sluice/core/random.hpp>
#include <sluice/kernel/top_k.hpp>

#include <span>

namespace sluice::inline SLUICE_ISA {

/// A round of k-means between sums and means.
template <typename Scalar>
struct kmeans_round {
  tokens_in<Scalar> x;              ///< [T,D]
  std::span<const Scalar> weights;  ///< [T], or none: ones
  std::span<const index_t> ids;     ///< [T]
  const_matrix_map<Scalar> codes;   ///< [C,D] as the tokens saw them
  index_t round = 0;
  executor_ref executor;
};

struct keep_codes {
  template <typename Scalar>
  void operator()(const kmeans_round<Scalar>&, code_sums<Scalar>&) {}
};

template <FloatOrDouble Scalar>
class farthest_tokens {
public:
  void operator()(const kmeans_round<Scalar>& r, code_sums<Scalar>& sums) {
    const index_t tokens = r.x.rows(), width = r.x.cols();
    distances_.reserve(tokens);  // also where no code is empty yet: a warm call allocates nothing
    farthest_.reserve((std::min)(tokens, 2 * sums.counts.size()));
    const auto empty = std::count(sums.weights.begin(), sums.weights.end(), Scalar(0));
    if (empty == 0 || tokens == 0) return;
    distances_.resize(tokens);
    r.executor.parallel_blocks(tokens, 256, width, [&](index_t begin, index_t end) {
      for (index_t t = begin; t < end; ++t) {
        const index_t id = r.ids[as_size(t)];
        const bool moves = id != no_code && (r.weights.empty() || r.weights[as_size(t)] > 0);
        distances_[t] = moves ? kernel::squared_difference(row(r.x, t), r.codes.data() + id * width, width) : Scalar(0);
      }
    });
    // Those that are alone are passed over: there are fewer than codes.
    farthest_.resize(std::min<index_t>(tokens, empty + sums.counts.size()));
    kernel::top_k(distances_.data(), tokens, farthest_.size(), farthest_.data());
    index_t next = 0;
    for (index_t c = 0; c < sums.counts.size(); ++c) {
      if (sums.weights[c] > 0) continue;
      const auto stays = [&](index_t t) { return sums.counts[r.ids[as_size(t)]] < 2; };
      while (next < farthest_.size() && distances_[farthest_[next]] > 0 && stays(farthest_[next])) ++next;
      if (next == farthest_.size() || !(distances_[farthest_[next]] > 0)) return;
      const index_t t = farthest_[next++], from = r.ids[as_size(t)];
      const Scalar weight = r.weights.empty() ? Scalar(1) : r.weights[as_size(t)];
      kernel::add_scaled(-weight, row(r.x, t), sums.sums.row(from), width);
      kernel::copy_scaled(weight, row(r.x, t), sums.sums.row(c), width);
      sums.weights[from] -= weight;
      sums.weights[c] = weight;
      --sums.counts[from];
      ++sums.counts[c];
    }
  }

private:
  static const Scalar* row(tokens_in<Scalar> x, index_t t) { return x.data() + t * x.outerStride(); }

  buffer<Scalar> distances_;
  buffer<index_t> farthest_;
};

template <FloatOrDouble Scalar>
class split_codes {
public:
  split_codes() = default;
  explicit split_codes(random_source random) : random_(random) {}

  void operator()(const kmeans_round<Scalar>& r, code_sums<Scalar>& sums) {
    const index_t codes = sums.counts.size(), width = sums.sums.cols();
    for (buffer<index_t>* of_tokens : {&owners_, &drawable_, &places_}) of_tokens->reserve(r.x.rows());
    begins_.reserve(codes);
    if (std::count(sums.weights.begin(), sums.weights.end(), Scalar(0)) == 0) return;
    list(sums);
    for (index_t c = 0; c < codes && !drawable_.empty(); ++c) {
      if (sums.weights[c] > 0) continue;
      const double lot = random_.uniform(random_site("kmeans.split_codes"), r.round * codes + c);
      const auto all = static_cast<double>(drawable_.size());
      const index_t from = owners_[drawable_[(std::min)(static_cast<index_t>(lot * all), drawable_.size() - 1)]];
      split(from, c, sums, width);
    }
  }

private:
  /// Of the tokens by code, all but the first of each code: so many chances it has.
  void list(const code_sums<Scalar>& sums) {
    owners_.resize(sums.order.size());
    begins_.resize(sums.counts.size());
    places_.resize(sums.order.size());
    drawable_.clear();
    for (index_t c = 0; c < sums.counts.size(); ++c) {
      begins_[c] = sums.first[c];
      for (index_t i = sums.first[c]; i < sums.first[c + 1]; ++i) {
        owners_[i] = c;
        if (i == begins_[c] || !(sums.weights[c] > 0)) continue;
        places_[i] = drawable_.size();
        drawable_.push_back(i);
      }
    }
  }

  /// The upper half of the tokens of `from` goes to c; the first of them is none to draw any more.
  void split(index_t from, index_t c, code_sums<Scalar>& sums, index_t width) {
    constexpr Scalar nudge = Scalar(1) / 1024;
    const index_t count = sums.counts[from], moved = count / 2;
    begins_[c] = begins_[from] + count - moved;
    std::fill_n(owners_.data() + begins_[c], moved, c);
    const index_t last = drawable_[drawable_.size() - 1], place = places_[begins_[c]];
    drawable_[place] = last;
    places_[last] = place;
    drawable_.resize(drawable_.size() - 1);

    const Scalar share = static_cast<Scalar>(moved) / static_cast<Scalar>(count), rest = 1 - share;
    Scalar *const donor = sums.sums.row(from), *const copy = sums.sums.row(c);
    for (index_t d = 0; d < width; ++d) {
      const Scalar sign = d % 2 == 0 ? Scalar(1) : Scalar(-1);
      copy[d] = share * donor[d] * (1 + sign * nudge);
      donor[d] = rest * donor[d] * (1 - sign * nudge);
    }
    sums.weights[c] = share * sums.weights[from];
    sums.weights[from] *= rest;
    sums.counts[c] = moved;
    sums.counts[from] = count - moved;
  }

  random_source random_;
  buffer<index_t> owners_;    ///< code of every token, tokens by code
  buffer<index_t> begins_;    ///< first token of every code
  buffer<index_t> drawable_;  ///< tokens that are not the first of their code
  buffer<index_t> places_;    ///< of a token in drawable_
};

}  // namespace sluice::inline SLUICE_ISA
