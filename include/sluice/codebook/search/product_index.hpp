/// An index of vectors by product codes: M bytes a vector, searched exhaustively or through inverted lists.
///
///   product_index<float> index(vectors, {.parts = 8, .lists = 256});      // learns from the vectors and takes them in
///   index.search(queries, ids, scores, workspace, {.probes = 8});         // [Q,k]: numbers of vectors, best first
///   rerank(queries, vectors, closeness::distance, ids, ...);   // exact scores, where the vectors are at hand
///
/// lists = 0 scans all codes; with lists, items go by the nearest center and codes are of what is left, unless
/// by_residual is false. Vectors are numbered in the order of add; one that holds NaN cannot be added. Equal scores:
/// the lower number first; queries that hold NaN find nothing. search is const and thread-safe, a workspace a thread;
/// equal bits for every executor; nothing is allocated once warm. Parameters, which save and load write and read:
/// "codes.table" and, with lists, "centers" [L,P]; the items themselves are plain numbers, items() out and add_items()
/// in: the list, if there are lists, and M codes. Jegou, Douze, Schmid 2011, "Product Quantization for Nearest Neighbor
/// Search".
#pragma once

#include <sluice/codebook/kmeans.hpp>
#include <sluice/codebook/search/inverted_lists.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

struct product_index_options {
  index_t parts = 8;    ///< bytes a vector
  index_t codes = 256;  ///< of a part, at most 256
  index_t lists = 0;    ///< none: every search goes through all items
  closeness wanted = closeness::distance;
  bool by_residual = true;
  bool rotation = false;  ///< none until somebody sets it
  kmeans_options learning = {};
  random_source random = random_source(1);  ///< of the first codes
};

struct product_search_options {
  index_t probes = 1;  ///< lists that a query looks into; all of them if there are fewer
};

template <FloatOrDouble Scalar>
class product_index {
public:
  using scalar = Scalar;
  struct workspace {
    typename product_codes<Scalar>::workspace codes;
    cost_tables<Scalar> tables;
    code_search<Scalar> centers;
    nearest_scratch<Scalar> nearest;
    lists_scratch<Scalar> lists;
    matrix_buffer<Scalar> rests;
    matrix_buffer<index_t> items;
  };

  /// Of vectors [T,D] to come; codes are zero until learn, or until they are loaded. Throws std::invalid_argument
  /// unless 1 <= codes <= 256, lists >= 0 and every part holds a number of the vector.
  explicit product_index(index_t width, product_index_options o = {})
      : options_(o),
        codes_(width, {.parts = o.parts, .codes = o.codes, .rotation = o.rotation}),
        items_(std::max<index_t>(o.lists, 1), o.parts) {
    if (o.codes > code_blocks::most_codes || o.lists < 0)
      throw_invalid("an index has at most ", code_blocks::most_codes,
                    " codes a part and no negative number of lists, not ", o.codes, " and ", o.lists);
    if (o.lists > 0) centers_ = {{o.lists, codes_.rotated_width()}, parameter_role::weight};
  }

  /// Learns from all vectors and takes them in.
  explicit product_index(tokens_in<Scalar> vectors, product_index_options o = {}, const executor_ref& executor = {})
      : product_index(vectors.cols(), o) {
    workspace ws;
    learn(vectors, ws, executor);
    add(vectors, ws, executor);
  }

  index_t inputs() const noexcept { return codes_.inputs(); }
  index_t size() const noexcept { return items_.size(); }
  index_t lists() const noexcept { return options_.lists; }
  /// Numbers that stand for an item: its list, if there are lists, and its codes.
  index_t item_columns() const noexcept { return codes_.parts() + (has_lists() ? 1 : 0); }
  const product_index_options& options() const noexcept { return options_; }

  /// Centers and codes by k-means of x [T,D]; items that are in already stay as they were coded. Throws
  /// std::invalid_argument if there is nothing to learn from.
  void learn(tokens_in<Scalar> x, workspace& ws, const executor_ref& executor = {}) {
    auto rows = codes_.rotate(x, ws.codes, executor);
    if (has_lists()) {
      kmeans_options o = options_.learning;
      o.spherical = options_.wanted == closeness::product;
      const auto table = clustered(rows, lists(), o, options_.random, executor);
      centers_.assign(table);
      rests(rows, ws, executor);
    }
    const auto coded = codes_from(rows, ws);
    for (index_t m = 0; m < codes_.parts(); ++m) {
      const auto table = clustered(coded.middleCols(m * codes_.part_width(), codes_.part_width()), codes_.codes(),
                                   options_.learning, options_.random.split(m), executor);
      std::copy_n(table.data(), table.size(), codes_.table().data() + m * table.size());
    }
  }

  /// Vectors [T,D] get the next numbers. Throws std::invalid_argument for another width and for a vector that holds
  /// NaN; then none is added.
  void add(tokens_in<Scalar> x, workspace& ws, const executor_ref& executor = {}) {
    encode(x, ws, executor);
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t c = 0; c < item_columns(); ++c)
        if (ws.items(t, c) == no_code) throw_invalid("vector ", t, " holds NaN and cannot be found");
    add_items(ws.items.map());
  }

  /// items [T, item_columns()]: what stands for the vectors, by number.
  void items(tokens_out<index_t> items) const {
    check_items(items.rows(), items.cols());
    const index_t first = has_lists() ? 1 : 0;
    for (index_t l = 0; l < items_.lists(); ++l)
      for (index_t i = 0; i < items_.items(l).size(); ++i) {
        const index_t number = items_.numbers(l)[as_size(i)];
        if (has_lists()) items(number, 0) = l;
        for (index_t m = 0; m < codes_.parts(); ++m) items(number, first + m) = items_.items(l).code(i, m);
      }
  }
  /// Items as items() wrote them get the next numbers. Throws std::invalid_argument for numbers that are no list or
  /// code; then none is added.
  void add_items(tokens_in<index_t> items) {
    const index_t first = has_lists() ? 1 : 0;
    if (items.cols() != item_columns()) throw_invalid("an item is ", item_columns(), " numbers, not ", items.cols());
    for (index_t t = 0; t < items.rows(); ++t)
      for (index_t c = 0; c < items.cols(); ++c) {
        const index_t most = c < first ? lists() : codes_.codes();
        if (items(t, c) < 0 || items(t, c) >= most)
          throw_invalid("item ", t, " has ", items(t, c), " in column ", c, ", which goes to ", most - 1);
      }
    for (index_t t = 0; t < items.rows(); ++t)
      items_.add(has_lists() ? items(t, 0) : 0, items.data() + t * items.outerStride() + first, items_.size());
  }

  /// ids [Q,k] and scores [Q,k] of the vectors closest to queries [Q,D], best first: squared distances, or inner
  /// products. Throws std::invalid_argument if shapes do not fit or probes < 1.
  void search(tokens_in<Scalar> queries, tokens_out<index_t> ids, tokens_out<Scalar> scores, workspace& ws,
              product_search_options o = {}, const executor_ref& executor = {}) const {
    if (o.probes < 1) throw_invalid("a query looks into at least 1 list, not ", o.probes);
    const auto rows = codes_.rotate(queries, ws.codes, executor);
    ws.tables.prepare(codes_);
    if (!has_lists())
      return scan_codes<Scalar>(rows, ws.tables, options_.wanted, items_.items(0), ids, scores, ws.lists.scan,
                                executor);
    prepare_centers(ws, executor);
    scan_lists<Scalar>(rows, {items_, centers_.map(), ws.centers, ws.tables, options_.wanted, options_.by_residual},
                       (std::min)(o.probes, lists()), ids, scores, ws.lists, executor);
  }

  product_codes<Scalar>& codes() noexcept { return codes_; }
  const product_codes<Scalar>& codes() const noexcept { return codes_; }
  parameter<Scalar>& centers() noexcept { return centers_; }
  const parameter<Scalar>& centers() const noexcept { return centers_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("codes", self.codes_);
    if (self.has_lists()) visit("centers", self.centers_);
  }

private:
  bool has_lists() const noexcept { return options_.lists > 0; }
  void check_items(index_t rows, index_t cols) const {
    if (rows != size() || cols != item_columns())
      throw_invalid("the items are [", size(), ", ", item_columns(), "] numbers, not [", rows, ", ", cols, "]");
  }

  static matrix<Scalar> clustered(tokens_in<Scalar> x, index_t codes, const kmeans_options& o,
                                  const random_source& random, const executor_ref& executor) {
    kmeans<Scalar> clusters(codes, x.cols(), o);
    clusters.begin(x, random_rows{random}, executor);
    clusters.fit(x, executor);
    return clusters.table();
  }

  void prepare_centers(workspace& ws, const executor_ref& executor) const {
    if (options_.wanted == closeness::distance)
      squared_distance{}.prepare<Scalar>(centers_.map(), ws.centers, executor);
    else
      inner_product{}.prepare<Scalar>(centers_.map(), ws.centers, executor);
  }

  /// Lists of rows [T,P], in column 0 of ws.items, and what is left of rows, in ws.rests.
  void rests(const_matrix_map<Scalar> rows, workspace& ws, const executor_ref& executor) const {
    prepare_centers(ws, executor);
    ws.items.resize(rows.rows(), item_columns());
    nearest_codes<Scalar>(rows, ws.centers, ws.items.map(), nullptr, ws.nearest, executor);
    if (!options_.by_residual) return;
    ws.rests.resize(rows.rows(), rows.cols());
    for (index_t t = 0; t < rows.rows(); ++t) {
      ws.rests.map().row(t) = rows.row(t);
      if (ws.items(t, 0) != no_code) ws.rests.map().row(t) -= centers_.map().row(ws.items(t, 0));
    }
  }
  /// What codes are made of.
  const_matrix_map<Scalar> codes_from(const_matrix_map<Scalar> rows, workspace& ws) const {
    return has_lists() && options_.by_residual ? std::as_const(ws.rests).map() : rows;
  }

  /// ws.items of x.
  void encode(tokens_in<Scalar> x, workspace& ws, const executor_ref& executor) const {
    const auto rows = codes_.rotate(x, ws.codes, executor);
    ws.items.resize(rows.rows(), item_columns());
    if (has_lists()) rests(rows, ws, executor);
    codes_.encode_rotated(codes_from(rows, ws), ws.items.map().rightCols(codes_.parts()), ws.codes, executor);
  }

  product_index_options options_;
  product_codes<Scalar> codes_;
  parameter<Scalar> centers_;
  item_lists items_;
};

}  // namespace sluice::inline SLUICE_ISA
