// Formats whose codes stand for vectors of weights: ggml's IQ formats, VPTQ's files, QMoE's rows.
#include "exact_weights.hpp"
#include "replays.hpp"

#include <sluice/kernel/format/changed_columns.hpp>
#include <sluice/kernel/format/codebook_storage.hpp>
#include <sluice/kernel/format/column_codes.hpp>
#include <sluice/kernel/format/grid_storage.hpp>
#include <sluice/kernel/format/outlier_storage.hpp>
#include <sluice/kernel/format/ternary_runs.hpp>

namespace oracle {
namespace {

using namespace sluice;

template <typename Format, typename Scalar>
void replay_grid(oracle_case<Scalar>& c) {
  using storage = grid_storage<Format>;
  const auto E = c.template setting<index_t>("E"), R = c.template setting<index_t>("rows");
  const auto cols = c.template setting<index_t>("cols");
  if (c.template setting<index_t>("ggml_type") != static_cast<index_t>(Format::type) ||
      c.template setting<index_t>("block_bytes") != Format::block_bytes || cols % storage::block != 0)
    throw unsupported("another block");
  // Small numbers, in eight bytes or one: the lowest byte says them.
  const auto& grid = c.file().at("grid");
  const index_t width = static_cast<index_t>(grid.bytes.size()) / static_cast<index_t>(grid.elements());
  for (index_t i = 0; i < static_cast<index_t>(grid.elements()); ++i)
    if (static_cast<std::int8_t>(grid.bytes[as_size(i * width)]) !=
        Format::grid.number(i / Format::grid.length, i % Format::grid.length))
      return c.fail("entry " + std::to_string(i / Format::grid.length) + " of the grid differs");

  const auto bytes = c.file().at("bytes").bytes;
  const matrix<Scalar> x = c.rows("x");
  const index_t blocks = cols / storage::block;
  matrix<float> weights(E * R, cols);
  matrix<Scalar> y(E * x.rows(), R);
  for (index_t e = 0; e < E; ++e) {
    const auto row = [&](index_t r) { return bytes.data() + (e * R + r) * blocks * Format::block_bytes; };
    linear_map<storage> map(R, cols);
    for (index_t p = 0; p < map.panels(); ++p)
      storage::pack_rows([&](index_t l) { return p * storage::lanes + l < R ? row(p * storage::lanes + l) : nullptr; },
                         0, blocks, map.weight().data() + p * detail::panel_bytes<storage>(cols));
    for (index_t r = 0; r < R; ++r)
      for (index_t b = 0; b < blocks; ++b)
        decode_grid_block<Format>(row(r) + b * Format::block_bytes, &weights(e * R + r, b * storage::block));
    if (map.weight().to_matrix() != weights.middleRows(e * R, R))
      return c.fail("a panel has other numbers than a block");
    y.middleRows(e * x.rows(), x.rows()) = product(x, map);
  }
  check_exactly(c, "weight", weights);
  c.check("y", y);
}

template <typename Scalar>
void replay_ggml_iq(oracle_case<Scalar>& c) {
  const auto format = c.template setting<std::string>("format");
  if (format == "iq1_s") return replay_grid<iq1_s>(c);
  if (format == "iq1_m") return replay_grid<iq1_m>(c);
  if (format == "iq2_xxs") return replay_grid<iq2_xxs>(c);
  if (format == "iq2_xs") return replay_grid<iq2_xs>(c);
  if (format == "iq2_s") return replay_grid<iq2_s>(c);
  if (format == "iq3_xxs") return replay_grid<iq3_xxs>(c);
  if (format == "iq3_s") return replay_grid<iq3_s>(c);
  throw unsupported("format " + format);
}

/// Tensor [regions, K, vector] of codebooks, and indices [regions, vectors, columns] side by side.
template <typename Scalar>
void add_stage(oracle_case<Scalar>& c, const std::string& prefix, vector_codes& codes) {
  const matrix<Scalar> entries = c.rows(prefix + "centroids");
  const index_t regions = c.axis(prefix + "centroids", 0), K = entries.rows() / regions;
  for (index_t r = 0; r < regions; ++r) codes.codebooks.push_back(entries.middleRows(r * K, K).template cast<float>());
  const auto ids = c.integers(prefix + "indices");
  const index_t rows = c.axis(prefix + "indices", 1), cols = c.axis(prefix + "indices", 2);
  codes.indices.emplace_back(rows, regions * cols);
  for (index_t r = 0; r < regions; ++r)
    for (index_t a = 0; a < rows; ++a)
      for (index_t b = 0; b < cols; ++b)
        codes.indices.back()(a, r * cols + b) = static_cast<std::uint16_t>(ids.at(as_size((r * rows + a) * cols + b)));
}

/// Weights of float, and x W^T. Three roundings make a weight: the sum of entries, its product with the scale, the bias.
template <typename Scalar>
void check_columns(oracle_case<Scalar>& c, const column_codes& codes, const matrix<float>& w, const matrix<Scalar>& y) {
  double largest = w.cwiseAbs().maxCoeff();
  for (const float b : codes.bias) largest = std::max(largest, 2.0 * std::abs(b) + w.cwiseAbs().maxCoeff());
  const double off = sizeof(Scalar) == 8 ? 3 * 0x1p-24 * largest : 0;
  const matrix<Scalar> x = c.rows("x");
  c.check("weight", matrix<Scalar>(w.template cast<Scalar>()), 0, off);
  c.check("y", y, 0, off * static_cast<double>(x.cwiseAbs().rowwise().sum().maxCoeff()));
}

/// The storage of the main codes within outliers and changed columns.
template <typename Inner, typename Scalar>
void check_stored(oracle_case<Scalar>& c, const column_codes& codes, const matrix<Scalar>& x) {
  using storage = changed_columns<outlier_storage<Inner, float>>;
  const auto [plain, beside] = codes.to_storable();
  const auto held = with_outliers<float>(packed_map<Inner>(plain), beside);
  linear_map<storage> map(codes.outputs(), codes.inputs(), storage(held.format(), codes.scale, codes.bias));
  std::copy_n(held.weight().data(), held.weight().value().size(), map.weight().data());
  check_columns(c, codes, map.weight().to_matrix(), product(x, map));
}

template <typename Scalar>
void replay_vptq(oracle_case<Scalar>& c) {
  const auto size = [&](const char* name) { return c.template setting<index_t>(name); };
  if (c.template setting<std::string>("kind", "decode") == "sweep") return vptq_sweep(c);
  const index_t out = size("out"), groups = size("codebooks"), group = size("group_size");
  column_codes codes;
  codes.main.outputs = out;
  codes.main.inputs = groups * group;
  codes.main.tile_outputs = size("vector");
  codes.main.region_inputs = groups > 1 ? group : 0;
  add_stage(c, "", codes.main);
  if (size("K_res") > 0) {
    add_stage(c, "res_", codes.main);
    if (groups > 1) throw unsupported("residual codebooks of several groups");
  }
  if (size("outliers") > 0) {
    codes.outliers.outputs = out;
    codes.outliers.inputs = size("outliers");
    codes.outliers.tile_outputs = size("outlier_vector");
    add_stage(c, "outlier_", codes.outliers);
  }
  if (c.template setting<bool>("perm")) codes.permutation = c.integers("perm");
  if (c.template setting<bool>("norm")) {
    codes.scale = c.file().template read_vector<float>("weight_scale");
    codes.bias = c.file().template read_vector<float>("weight_bias");
  }
  codes.validate();

  // The same indices as a stream of bits.
  const auto bits = [&](const char* name) {
    return size(name) > 0 ? std::countr_zero(static_cast<std::uint64_t>(size(name))) : 0;
  };
  const auto packed = c.file().at("packed_indices").bytes;
  const index_t rows = codes.main.tile_rows();
  for (index_t r = 0; r < groups; ++r) {
    matrix<std::uint16_t> main(rows, 0), residual;
    unpack_indices(packed.subspan(as_size(r) * packed.size() / as_size(groups), packed.size() / as_size(groups)), group,
                   bits("K"), bits("K_res"), main, size("K_res") > 0 ? &residual : nullptr);
    if (main != codes.main.indices[0].middleCols(r * group, group) ||
        (size("K_res") > 0 && residual != codes.main.indices[1]))
      return c.fail("packed indices differ");
  }
  const matrix<Scalar> x = c.rows("x");
  const matrix<float> w = codes.to_matrix();
  check_columns<Scalar>(c, codes, w, x * w.template cast<Scalar>().transpose());
  if (groups > 1) return;  // codebooks for some of the columns: blocks of the storage would cross their borders
  check_stored<codebook_storage<4, 7, vector_direction::along_outputs, no_scale>>(c, codes, x);
}

template <typename Scalar>
void replay_dictionary(oracle_case<Scalar>& c) {
  const ternary_dictionary& dictionary = ternary_dictionary::shared();
  std::vector<index_t> words, counts(as_size(ternary_dictionary::most_pairs + 1));
  for (const index_t id : c.integers("index"))
    for (const std::uint32_t word : dictionary.words(static_cast<std::uint16_t>(id))) words.push_back(word);
  std::uint64_t hash = 1469598103934665603U;
  for (index_t r = 0; r < dictionary.runs; ++r) {
    ++counts[as_size(dictionary.pairs(static_cast<std::uint16_t>(r)))];
    for (const std::uint32_t word : dictionary.words(static_cast<std::uint16_t>(r)))
      for (int byte = 0; byte < 4; ++byte) hash = (hash ^ (word >> (8 * byte) & 0xFFU)) * 1099511628211U;
  }
  const auto signed_hash = static_cast<index_t>(hash);
  c.check_integers("words", words);
  c.check_integers("length_counts", counts);
  c.check_integers("fnv1a64", {&signed_hash, 1});
}

}  // namespace

template <typename Scalar>
void replay_ternary_runs(oracle_case<Scalar>& c) {
  if (c.has("expected.words")) return replay_dictionary(c);
  if (c.template setting<std::string>("kind") != "codec") throw unsupported("another kind of QMoE's");
  const auto w = c.file().template read_vector<float>("w");
  const index_t cols = c.axis("w", 1);
  const ternary_runs runs = ternary_runs::of(Eigen::Map<const matrix<float>>(w.data(), c.axis("w", 0), cols));
  std::vector<index_t> codes(runs.runs().begin(), runs.runs().end()), values;
  std::vector<int> row(as_size(cols));
  std::vector<Scalar> low, high;
  for (index_t o = 0; o < runs.outputs(); ++o) {
    runs.values(o, row.data());
    values.insert(values.end(), row.begin(), row.end());
    low.push_back(static_cast<Scalar>(runs.low(o)));
    high.push_back(static_cast<Scalar>(runs.high(o)));
  }
  c.check_integers("w_comp", codes);
  c.check_integers("row_off", runs.first());
  c.check_integers("tern", values);
  c.check("min", low);
  c.check("max", high);
  const matrix<Scalar> x = c.rows("x");
  matrix<Scalar> y = x * runs.to_matrix().template cast<Scalar>().transpose();
  if constexpr (sizeof(Scalar) == 4) {
    buffer<float> columns;
    runs.multiply(x, y, columns);
  }
  c.check("y", y);
}
template void replay_ternary_runs<float>(oracle_case<float>&);
template void replay_ternary_runs<double>(oracle_case<double>&);

std::vector<replayer> vector_formats() {
  return {{"ggml_iq", replay_ggml_iq<float>, replay_ggml_iq<double>},
          {"vptq", replay_vptq<float>, replay_vptq<double>}};
}

}  // namespace oracle
