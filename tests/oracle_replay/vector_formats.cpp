// Formats whose codes stand for vectors of weights: ggml's IQ formats.
#include "exact_weights.hpp"
#include "replays.hpp"

#include <sluice/kernel/format/grid_storage.hpp>

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

}  // namespace

std::vector<replayer> vector_formats() { return {{"ggml_iq", replay_ggml_iq<float>, replay_ggml_iq<double>}}; }

}  // namespace oracle
