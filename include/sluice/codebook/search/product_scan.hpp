/// The k items that are closest to a query by their codes: every item's cost is a sum of M table entries.
///
///   cost of item i for query q  =  base + sum over m of tables[q][m, codes[i,m]]   codebook/search/cost_tables.hpp
///   queries [Q,P], items [N,M]  ->  ids [Q,k], scores [Q,k]        best first: squared distances, or inner products
///
/// Equal scores: the lower id first. Where there are fewer than k items, and for queries that hold NaN, ids are no_code
/// and scores NaN. Tiles of queries by ranges of items go to an executor; a range of items that fits the second cache
/// is read by a whole tile. Where the instruction set looks bytes up in registers, blocks of items whose bounds are too
/// high are passed over (codebook/search/cost_bounds.hpp), which changes no result. An item's cost and the order of
/// items depend on neither: equal bits for every executor. Nothing is allocated once warm. Jegou, Douze, Schmid 2011,
/// "Product Quantization for Nearest Neighbor Search".
#pragma once

#include <sluice/codebook/search/best_items.hpp>
#include <sluice/codebook/search/code_blocks.hpp>
#include <sluice/codebook/search/cost_bounds.hpp>
#include <sluice/codebook/search/cost_tables.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/byte_tables.hpp>

#include <algorithm>
#include <array>
#include <bit>

namespace sluice::inline SLUICE_ISA {

/// Offers the items of blocks first .. last at the costs that the table [M, entries] of a query says. `ids` are the
/// items' names; null: their numbers. Bounds of the same table, where there are some, save the sums of blocks that hold
/// nothing good enough.
template <FloatOrDouble Scalar>
void scan_blocks(const code_blocks& items, index_t first, index_t last, const Scalar* table, index_t entries,
                 std::type_identity_t<Scalar> base, const index_t* ids, best_items<Scalar>& best,
                 const cost_bounds<Scalar>& bounds = {}) {
  std::array<Scalar, as_size(code_blocks::block_items)> costs;
  for (index_t b = first; b < last; ++b) {
    if (bounds.bytes != nullptr && best.is_full()) {
      const int most = bounds.most(best.limit(), base);
      if (most < 0) return;
      if (kernel::byte_sums_at_most(items.block(b), items.parts(), bounds.bytes, static_cast<std::uint16_t>(most)) == 0)
        continue;
    }
    kernel::sum_entries<Scalar>(items.block(b), items.parts(), table, entries, base, costs.data());
    std::uint64_t bits = kernel::sums_at_most<Scalar>(costs.data(), best.limit());
    const index_t from = b * code_blocks::block_items, left = items.size() - from;
    if (left < code_blocks::block_items) bits &= (std::uint64_t{1} << left) - 1;
    for (; bits != 0; bits &= bits - 1) {
      const index_t i = std::countr_zero(bits);
      best.offer(costs[as_size(i)], ids == nullptr ? from + i : ids[from + i]);
    }
  }
}

/// Costs to scores, and no_code where nothing was found.
template <FloatOrDouble Scalar>
void write_found(std::span<const costed_item<Scalar>> found, closeness wanted, tokens_out<index_t> ids,
                 tokens_out<Scalar> scores, index_t query) {
  for (index_t j = 0; j < ids.cols(); ++j) {
    const bool is_there = as_size(j) < found.size();
    ids(query, j) = is_there ? found[as_size(j)].id : no_code;
    if (!is_there)
      scores(query, j) = quiet_nan<Scalar>();
    else
      scores(query, j) = wanted == closeness::distance ? found[as_size(j)].cost : -found[as_size(j)].cost;
  }
}

/// What a scan works in; one a thread that calls.
template <FloatOrDouble Scalar>
struct scan_scratch {
  buffer<Scalar> tables;
  buffer<std::uint8_t> bytes;
  buffer<cost_bounds<Scalar>> bounds;
  buffer<costed_item<Scalar>> room;
  buffer<index_t> found;
};

/// Queries [Q,P] are as their parts see them. Throws std::invalid_argument if shapes do not fit.
template <FloatOrDouble Scalar>
void scan_codes(tokens_in<Scalar> queries, const cost_tables<Scalar>& tables, closeness wanted,
                const code_blocks& items, tokens_out<index_t> ids, tokens_out<Scalar> scores,
                scan_scratch<Scalar>& scratch, const executor_ref& executor = {}) {
  const index_t k = ids.cols();
  if (queries.cols() != tables.width() || items.parts() != tables.parts() || ids.rows() != queries.rows() ||
      scores.rows() != ids.rows() || scores.cols() != k)
    throw_invalid("a scan of ", items.parts(), " parts with tables of ", tables.parts(), " needs queries [Q, ",
                  tables.width(), "] and ids and scores [Q, k], not [", queries.rows(), ", ", queries.cols(), "], [",
                  ids.rows(), ", ", k, "] and [", scores.rows(), ", ", scores.cols(), "]");
  constexpr index_t tile = 8, chunk = 256;  // queries; blocks, 128 KB of 8 parts
  constexpr index_t most_entries = 1 << 20;
  constexpr index_t worth_bounds = 1 << 13;  // items: bounds of a query take as long as the sums of some thousand
  const bool bounded = kernel::has_byte_tables && items.size() >= worth_bounds;
  const index_t chunks = (items.blocks() + chunk - 1) / chunk;
  const index_t together = std::clamp(most_entries / tables.size() / tile * tile, tile, index_t{256});
  for (index_t begin = 0; begin < queries.rows(); begin += together) {
    const index_t count = (std::min)(together, queries.rows() - begin), tiles = (count + tile - 1) / tile;
    const executor_ref threads = executor.for_work(count * items.size() * items.parts() / 4);
    const index_t wanted_tasks = threads.concurrency() == 1 ? 1 : 4 * threads.concurrency();
    const index_t splits = std::clamp((wanted_tasks + tiles - 1) / tiles, index_t{1}, (std::max)(chunks, index_t{1}));
    scratch.tables.resize(count * tables.size());
    scratch.bounds.assign(count, {});
    scratch.bytes.resize(bounded ? count * tables.parts() * cost_bounds<Scalar>::entries : 0);
    scratch.room.resize(count * splits * k);
    scratch.found.resize(count * splits);
    executor.parallel_blocks(count, 1, tables.size() * tables.width() / tables.parts() / 4, [&](index_t q, index_t) {
      Scalar* const table = scratch.tables.data() + q * tables.size();
      tables.make(wanted, queries.data() + (begin + q) * queries.outerStride(), table);
      if (bounded)
        scratch.bounds[q] =
            cost_bounds<Scalar>::of(table, tables.parts(), tables.codes(),
                                    scratch.bytes.data() + q * tables.parts() * cost_bounds<Scalar>::entries);
    });
    const auto room_of = [&](index_t q, index_t split) {
      return scratch.room.span().subspan(as_size((q * splits + split) * k), as_size(k));
    };
    threads.parallel_for(tiles * splits, [&](index_t task) {
      const index_t split = task % splits, from = task / splits * tile, many = (std::min)(tile, count - from);
      std::array<best_items<Scalar>, as_size(tile)> best;
      for (index_t q = 0; q < many; ++q) best[as_size(q)] = best_items<Scalar>(room_of(from + q, split));
      for (index_t c = chunks * split / splits; c < chunks * (split + 1) / splits; ++c)
        for (index_t q = 0; q < many; ++q)
          scan_blocks<Scalar>(items, c * chunk, (std::min)((c + 1) * chunk, items.blocks()),
                              scratch.tables.data() + (from + q) * tables.size(), tables.codes(), 0, nullptr,
                              best[as_size(q)], scratch.bounds[from + q]);
      for (index_t q = 0; q < many; ++q)
        scratch.found[(from + q) * splits + split] = static_cast<index_t>(best[as_size(q)].taken().size());
    });
    for (index_t q = 0; q < count; ++q) {
      const auto first = room_of(q, 0);
      best_items<Scalar> all(first, as_size(scratch.found[q * splits]));
      for (index_t split = 1; split < splits; ++split)
        all.offer(room_of(q, split).first(as_size(scratch.found[q * splits + split])));
      write_found<Scalar>(all.sorted(), wanted, ids, scores, begin + q);
    }
  }
}

}  // namespace sluice::inline SLUICE_ISA
