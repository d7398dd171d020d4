#include "search.hpp"

#include <sluice/codebook/search/product_index.hpp>
#include <sluice/codebook/search/rerank.hpp>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <utility>

#include "../shared/progress_line.hpp"
#include "../shared/text.hpp"
#include "vectors.hpp"

namespace codebooks {

namespace {

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point begin) { return std::chrono::duration<double>(clock::now() - begin).count(); }

/// The nearest vectors of every query, by comparing with all.
matrix<index_t> exact_neighbours(const matrix<float>& vectors, const matrix<float>& queries, index_t count) {
  matrix<index_t> ids(queries.rows(), count);
  const Eigen::VectorXf norms = vectors.rowwise().squaredNorm();
  std::vector<index_t> order(static_cast<std::size_t>(vectors.rows()));
  for (index_t q = 0; q < queries.rows(); ++q) {
    const Eigen::VectorXf distances = norms - 2 * (vectors * queries.row(q).transpose());
    std::iota(order.begin(), order.end(), index_t(0));
    std::partial_sort(order.begin(), order.begin() + count, order.end(),
                      [&](index_t a, index_t b) { return std::pair(distances[a], a) < std::pair(distances[b], b); });
    std::copy_n(order.begin(), count, ids.row(q).data());
  }
  return ids;
}

/// The share of the exact neighbours that were found.
double recall(const matrix<index_t>& exact, const matrix<index_t>& found, index_t count) {
  index_t hits = 0;
  for (index_t q = 0; q < exact.rows(); ++q)
    for (index_t i = 0; i < count; ++i) {
      const auto row = found.row(q).leftCols(count);
      hits += std::find(row.begin(), row.end(), exact(q, i)) != row.end();
    }
  return static_cast<double>(hits) / static_cast<double>(exact.rows() * count);
}

}  // namespace

int search(const search_options& o) {
  vectors v = read_vectors(o.input, false, 4, o.tensor);
  matrix<float> items = std::move(v.rows), queries;
  if (o.queries.empty()) {
    std::vector<index_t> own, asked;
    for (index_t r = 0; r < items.rows(); ++r) (r % 10 == 9 ? asked : own).push_back(r);
    if (asked.empty()) throw input_error(o.input + ": too few vectors to keep some as queries; give --queries");
    queries = items(asked, Eigen::all).eval();
    items = items(own, Eigen::all).eval();
  } else {
    queries = read_vectors(o.queries, false, 4, o.query_tensor).rows;
  }
  if (queries.cols() != items.cols())
    throw input_error("queries have " + std::to_string(queries.cols()) + " numbers, vectors " +
                      std::to_string(items.cols()));
  if (items.cols() % o.parts != 0)
    throw input_error("--parts " + std::to_string(o.parts) + " do not divide vectors of " +
                      std::to_string(items.cols()) + " numbers");
  const index_t count = std::min(o.neighbours, items.rows()), candidates = std::clamp(o.rerank, count, items.rows());

  const auto begin = clock::now();
  const sluice::product_index<float> index(items, {.parts = o.parts,
                                                   .codes = std::min<index_t>(256, items.rows()),
                                                   .lists = std::min(o.lists, items.rows()),
                                                   .random = sluice::random_source(o.seed)});
  const double built = seconds_since(begin);

  sluice::product_index<float>::workspace ws;
  matrix<index_t> found(queries.rows(), candidates);
  matrix<float> scores(queries.rows(), candidates);
  const auto asked = clock::now();
  index.search(queries, found, scores, ws, {.probes = o.probes});
  matrix<index_t> best = found.leftCols(count);
  if (o.rerank > 0) {
    matrix<float> exact_scores(queries.rows(), count);
    sluice::buffer<sluice::costed_item<float>> room;
    sluice::rerank<float>(queries, items, sluice::closeness::distance, found, best, exact_scores, room);
  }
  const double searched = seconds_since(asked);
  const auto compared = clock::now();
  const matrix<index_t> exact = exact_neighbours(items, queries, count);
  const double by_all = seconds_since(compared);

  const auto rate = [&](double seconds) {
    return shared::grouped(static_cast<std::int64_t>(static_cast<double>(queries.rows()) / seconds));
  };
  std::cout << shared::grouped(items.rows()) << " vectors of " << items.cols() << " numbers, "
            << shared::grouped(queries.rows()) << " queries, one thread\n\n";
  shared::print_columns(std::cout,
                        {{"", "bytes a vector", "queries/s", "recall of 1", "recall of " + std::to_string(count)},
                         {"exact", std::to_string(4 * items.cols()), rate(by_all), "100.0 %", "100.0 %"},
                         {"product codes", std::to_string(o.parts), rate(searched),
                          shared::percent(recall(exact, best, 1), 1), shared::percent(recall(exact, best, count), 1)}},
                        0);
  std::cout << "\nrecall of n: how many of the n nearest are among the n that were found. The index took "
            << shared::fixed(built, 2) << " s to build.\n"
            << std::flush;
  return std::cout ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace codebooks
