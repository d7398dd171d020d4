// What a file keeps of a layer: everything that its output depends on.
#pragma once

#include <sluice/train/initialize.hpp>

#include "support.hpp"

#if SLUICE_TEST_WITH_IO
#include <sluice/io/model_file.hpp>

#include "io/temporary_folder.hpp"
#endif

namespace sluice::test {

/// Whether a layer of other weights gives the same bits once it has loaded what this one saved.
template <typename Layer>
bool file_keeps(const Layer& layer, std::uint64_t seed) {
#if SLUICE_TEST_WITH_IO
  using scalar = typename Layer::scalar;
  const temporary_folder folder;
  save(layer, folder / "model.safetensors");
  Layer other = layer;
  initialize(other, seed + 1);
  const matrix<scalar> x = random_matrix<scalar>(9, layer.inputs(), seed);
  matrix<scalar> y(9, layer.outputs()), again = y;
  typename Layer::workspace workspace;
  layer.forward(x, y, workspace);
  other.forward(x, again, workspace);
  const bool was_other = !same_bits(again, y);
  load(other, folder / "model.safetensors");
  other.forward(x, again, workspace);
  return was_other && same_bits(again, y);
#else
  static_cast<void>(layer), static_cast<void>(seed);
  return true;
#endif
}

}  // namespace sluice::test
