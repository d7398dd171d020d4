/// EnCodec's residual quantiser, from a checkpoint by its published names.
///
///   auto rq = load_encodec_quantizer<float>("encodec_24khz.safetensors");
///   rq.use_stages(8);                                            // 6 kbit/s of the 24 kHz model, 75 frames a second
///
/// For every stage j: "quantizer.vq.layers.j._codebook.embed" [C,D], "embed_avg" [C,D], "cluster_size" [C] and "inited"
/// [1]; in the form of the transformers library "quantizer.layers.j.codebook.embed" and so on, which is given as
/// encodec_names_of_transformers. How many stages, C and D are the file's. It trains as published: nothing is cut from
/// the gradient, commitment of weight 1, moving averages with decay 0.99. Strict, as numbered_tensors are: what is
/// missing, differs or is left over below the prefix is listed in one file_error. A stage that was saved before it saw
/// data is refused.
/// Defossez et al. 2022, "High Fidelity Neural Audio Compression".
#pragma once

#include <sluice/checkpoint/numbered_tensors.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/structure/residual.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
using encodec_quantizer = residual_quantizer<vector_quantizer<moving_average_codes<Scalar>, commitment_loss>>;

struct encodec_names {
  std::string prefix = "quantizer.vq.layers";
  std::string codebook = "_codebook";
};
inline const encodec_names encodec_names_of_transformers{"quantizer.layers", "codebook"};

template <FloatOrDouble Scalar>
encodec_quantizer<Scalar> load_encodec_quantizer(const checkpoint_files& files, const encodec_names& names = {}) {
  numbered_tensors<Scalar> blocks(files, names.prefix);
  const auto named = [&](const char* tensor) { return names.codebook + '.' + tensor; };
  const index_t codes = blocks.extent(0, named("embed"), 0), width = blocks.extent(0, named("embed"), 1);
  blocks.throw_problems();
  std::vector<vector_quantizer<moving_average_codes<Scalar>, commitment_loss>> stages;
  for (index_t j = 0; j < blocks.count(); ++j) {
    moving_average_codes<Scalar> codebook(codes, width, {.decay = 0.99});
    blocks.read(j, named("embed"), {codes, width}, codebook.table().data());
    blocks.read(j, named("embed_avg"), {codes, width}, codebook.sums().data());
    blocks.read(j, named("cluster_size"), {codes}, codebook.sizes().data());
    if (blocks.read(j, named("inited"), {1}).front() == 0)
      blocks.add_problem(j, named("inited"), "the codebook was saved before it saw data");
    stages.emplace_back(std::move(codebook), commitment_loss{.encoder = 1});
  }
  blocks.finish();
  return encodec_quantizer<Scalar>(std::move(stages), {.gradient = residual_gradient::through_stages});
}
template <FloatOrDouble Scalar>
encodec_quantizer<Scalar> load_encodec_quantizer(const std::filesystem::path& path, const encodec_names& names = {}) {
  return load_encodec_quantizer<Scalar>(checkpoint_files(path), names);
}

}  // namespace sluice::inline SLUICE_ISA
