/// The residual quantiser of the Descript audio codec, from a checkpoint by its published names.
///
///   auto rq = load_dac_quantizer<float>("dac_44khz.safetensors");
///
/// For every stage j: "quantizer.quantizers.j.codebook.weight" [C,F], "in_proj.weight_g" [F,1,1], "in_proj.weight_v"
/// [F,D,1] and "in_proj.bias" [F], "out_proj" likewise with F and D exchanged. A weight is folded, W = g v / |v| per
/// output row; "weight" [F,D,1] in the place of the two is taken as it is. How many stages, C, F and D are the file's.
///
/// A stage projects to F numbers, takes the code of greatest cosine, and projects the code itself back. It trains as
/// published but for the two factors of a weight, which are one here: nothing is cut from the gradient, commitment of
/// weight 0.25, codes learn by their loss of weight 1, half of the items keep a drawn number of stages. Strict, as
/// numbered_tensors are.
/// Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN".
#pragma once

#include <sluice/checkpoint/numbered_tensors.hpp>
#include <sluice/codebook/structure/projected.hpp>
#include <sluice/codebook/structure/residual.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include <cmath>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
using dac_stage = projected_quantizer<vector_quantizer<learned_codes<Scalar>, cosine_similarity, commitment_loss>>;
template <FloatOrDouble Scalar>
using dac_quantizer = residual_quantizer<dac_stage<Scalar>>;

/// W [out,in] = g v / |v|, row by row. A row of zeros stays one.
template <FloatOrDouble Scalar>
void fold_weight_norm(const Scalar* g, const Scalar* v, index_t outputs, index_t inputs, Scalar* weight) {
  for (index_t r = 0; r < outputs; ++r, v += inputs, weight += inputs) {
    const Scalar length = std::sqrt(kernel::dot(v, v, inputs));
    kernel::copy_scaled(length == 0 ? Scalar(0) : g[r] / length, v, weight, inputs);
  }
}

namespace detail {

/// A 1 x 1 convolution as a linear layer.
template <typename Scalar>
void read_convolution(numbered_tensors<Scalar>& blocks, index_t block, const std::string& name,
                      linear_layer<Scalar>& layer) {
  const index_t outputs = layer.outputs(), inputs = layer.inputs();
  blocks.read(block, name + ".bias", {outputs}, layer.bias().data());
  if (blocks.has(block, name + ".weight")) {
    blocks.read(block, name + ".weight", {outputs, inputs, 1}, layer.weight().data());
    return;
  }
  const auto g = blocks.read(block, name + ".weight_g", {outputs, 1, 1});
  const auto v = blocks.read(block, name + ".weight_v", {outputs, inputs, 1});
  fold_weight_norm(g.data(), v.data(), outputs, inputs, layer.weight().data());
}

}  // namespace detail

template <FloatOrDouble Scalar>
dac_quantizer<Scalar> load_dac_quantizer(const checkpoint_files& files,
                                         const std::string& prefix = "quantizer.quantizers") {
  numbered_tensors<Scalar> blocks(files, prefix);
  const index_t width = blocks.extent(0, "out_proj.bias", 0);
  std::vector<dac_stage<Scalar>> stages;
  for (index_t j = 0; j < blocks.count(); ++j) {
    const index_t codes = blocks.extent(j, "codebook.weight", 0), narrow = blocks.extent(j, "codebook.weight", 1);
    blocks.throw_problems();
    const commitment_loss losses{.encoder = 0.25, .codebook = 1, .over_hidden = true};
    dac_stage<Scalar> stage(width, vector_quantizer(learned_codes<Scalar>(codes, narrow), cosine_similarity{}, losses));
    blocks.read(j, "codebook.weight", {codes, narrow}, stage.quantizer().codebook().table().data());
    detail::read_convolution(blocks, j, "in_proj", stage.project_in());
    detail::read_convolution(blocks, j, "out_proj", stage.project_out());
    stages.push_back(std::move(stage));
  }
  blocks.finish();
  return dac_quantizer<Scalar>(std::move(stages), {.gradient = residual_gradient::through_stages, .dropout = 0.5});
}
template <FloatOrDouble Scalar>
dac_quantizer<Scalar> load_dac_quantizer(const std::filesystem::path& path,
                                         const std::string& prefix = "quantizer.quantizers") {
  return load_dac_quantizer<Scalar>(checkpoint_files(path), prefix);
}

}  // namespace sluice::inline SLUICE_ISA
