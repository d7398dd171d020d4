/// Items in lists, by their nearest center, so that a query looks into a few lists only.
///
///   list of an item = the center closest to it             the lowest of equals
///   codes of what is left, item - center, or of the item   by_residual says which
///   a query's lists = the `probes` centers closest to it
///   cost in list l  = |(q - center l) - codes|^2, or -(q . center l) - q . codes
///
/// Centers [L,P] lie where items do once rotated. Items have numbers and stay in a list in the order in which they
/// came; the k best of all lists looked into come as codebook/search/product_scan.hpp says, with no_code and NaN where
/// there are fewer. Queries, and the lists of a query if queries are few, go to an executor: equal bits for every one.
/// Nothing is allocated once warm. With a single list and no center it is an exhaustive scan, for which scan_codes is
/// quicker. Sivic and Zisserman 2003, "Video Google"; Jegou, Douze, Schmid 2011, "Product Quantization for Nearest
/// Neighbor Search", section IV.
#pragma once

#include <sluice/codebook/search/product_scan.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/top_k.hpp>

#include <algorithm>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Coded items of L lists, each with its number.
class item_lists {
public:
  item_lists(index_t lists, index_t parts) {
    for (index_t l = 0; l < lists; ++l) lists_.push_back({code_blocks(parts), {}});
  }

  index_t lists() const noexcept { return static_cast<index_t>(lists_.size()); }
  index_t size() const noexcept { return size_; }
  const code_blocks& items(index_t list) const noexcept { return lists_[as_size(list)].items; }
  std::span<const index_t> numbers(index_t list) const noexcept { return lists_[as_size(list)].numbers.span(); }

  /// Throws std::invalid_argument for a code that is no byte.
  void add(index_t list, const index_t* codes, index_t number) {
    lists_[as_size(list)].items.add(codes);
    lists_[as_size(list)].numbers.push_back(number);
    ++size_;
  }

private:
  struct one_list {
    code_blocks items;
    buffer<index_t> numbers;
  };
  std::vector<one_list> lists_;
  index_t size_ = 0;
};

/// What is looked through: the parts of an index.
template <FloatOrDouble Scalar>
struct searched_lists {
  const item_lists& items;
  const_matrix_map<Scalar> centers;     ///< [L,P]
  const code_search<Scalar>& distance;  ///< of the centers: how close one is to a query
  const cost_tables<Scalar>& tables;
  closeness wanted;
  bool by_residual;
};

template <FloatOrDouble Scalar>
struct lists_scratch {
  scan_scratch<Scalar> scan;
  buffer<Scalar> scores;   ///< of centers, [queries at a time, L]
  buffer<index_t> probes;  ///< [queries at a time, probes]
  buffer<Scalar> rests;    ///< of queries, [queries at a time x tasks of a query, P]
};

/// The lists that a query looks into, best first: probes [n, count] of queries [n,P] that lie `stride` apart.
template <FloatOrDouble Scalar>
void closest_lists(const Scalar* queries, index_t stride, index_t n, const code_search<Scalar>& centers, Scalar* scores,
                   index_t* probes, index_t count) {
  const auto keys = centers.keys();
  kernel::multiply_nt(n, keys.count, keys.width, queries, stride, keys.keys, keys.stride, scores, keys.count);
  for (index_t q = 0; q < n; ++q) {
    Scalar* const row = scores + q * keys.count;
    for (index_t l = 0; keys.offsets != nullptr && l < keys.count; ++l) row[l] += keys.offsets[l];
    kernel::top_k(row, keys.count, count, probes + q * count);
  }
}

/// Queries [Q,P] are as their parts see them. Throws std::invalid_argument if shapes do not fit or probes is not in 1
/// .. L.
template <FloatOrDouble Scalar>
void scan_lists(tokens_in<Scalar> queries, const searched_lists<Scalar>& in, index_t probes, tokens_out<index_t> ids,
                tokens_out<Scalar> scores, lists_scratch<Scalar>& scratch, const executor_ref& executor = {}) {
  const index_t k = ids.cols(), width = in.tables.width(), lists = in.items.lists(), entries = in.tables.size();
  if (queries.cols() != width || in.centers.cols() != width || in.centers.rows() != lists ||
      ids.rows() != queries.rows() || scores.rows() != ids.rows() || scores.cols() != k)
    throw_invalid("a search in ", lists, " lists needs queries [Q, ", width, "] and ids and scores [Q, k], not [",
                  queries.rows(), ", ", queries.cols(), "], [", ids.rows(), ", ", k, "] and [", scores.rows(), ", ",
                  scores.cols(), "]");
  if (probes < 1 || probes > lists) throw_invalid("a query looks into 1 to ", lists, " lists, not ", probes);
  constexpr index_t most_together = 256, tile = 16;
  const index_t work = (in.items.size() / lists * in.items.items(0).parts() / 4 + entries) * probes;
  for (index_t begin = 0; begin < queries.rows(); begin += most_together) {
    const index_t count = (std::min)(most_together, queries.rows() - begin);
    const executor_ref threads = executor.for_work(count * work);
    const index_t wanted_tasks = threads.concurrency() == 1 ? 1 : 4 * threads.concurrency();
    const index_t splits = std::clamp((wanted_tasks + count - 1) / count, index_t{1}, probes), tasks = count * splits;
    scratch.scores.resize(count * lists);
    scratch.probes.resize(count * probes);
    scratch.rests.resize(tasks * width);
    scratch.scan.tables.resize(tasks * entries);
    scratch.scan.room.resize(tasks * k);
    scratch.scan.found.resize(tasks);
    const auto query = [&](index_t q) { return queries.data() + (begin + q) * queries.outerStride(); };
    executor.parallel_blocks(count, tile, lists * width / 4, [&](index_t first, index_t last) {
      closest_lists<Scalar>(query(first), queries.outerStride(), last - first, in.distance,
                            scratch.scores.data() + first * lists, scratch.probes.data() + first * probes, probes);
    });
    const auto room_of = [&](index_t task) { return scratch.scan.room.span().subspan(as_size(task * k), as_size(k)); };
    threads.parallel_for(tasks, [&](index_t task) {
      const index_t q = task / splits, split = task % splits;
      const bool rests = in.by_residual && in.wanted == closeness::distance;
      Scalar* const rest = scratch.rests.data() + task * width;
      Scalar* const table = scratch.scan.tables.data() + task * entries;
      if (!rests) in.tables.make(in.wanted, query(q), table);
      best_items<Scalar> best(room_of(task));
      for (index_t p = probes * split / splits; p < probes * (split + 1) / splits; ++p) {
        const index_t list = scratch.probes[q * probes + p];
        const code_blocks& items = in.items.items(list);
        if (items.size() == 0) continue;
        const Scalar* const center = in.centers.data() + list * width;
        Scalar base = 0;
        if (rests) {
          for (index_t d = 0; d < width; ++d) rest[d] = query(q)[d] - center[d];
          in.tables.make(in.wanted, rest, table);
        } else if (in.by_residual) {
          base = -kernel::dot(query(q), center, width);
        }
        scan_blocks<Scalar>(items, 0, items.blocks(), table, in.tables.codes(), base, in.items.numbers(list).data(),
                            best);
      }
      scratch.scan.found[task] = static_cast<index_t>(best.taken().size());
    });
    for (index_t q = 0; q < count; ++q) {
      best_items<Scalar> all(room_of(q * splits), as_size(scratch.scan.found[q * splits]));
      for (index_t split = 1; split < splits; ++split)
        all.offer(room_of(q * splits + split).first(as_size(scratch.scan.found[q * splits + split])));
      write_found<Scalar>(all.sorted(), in.wanted, ids, scores, begin + q);
    }
  }
}

}  // namespace sluice::inline SLUICE_ISA
