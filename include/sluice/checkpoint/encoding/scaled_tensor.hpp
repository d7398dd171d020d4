/// scaled_tensor: numbers of a GGUF tensor times a scale of its own, or of each matrix of a stack.
///
///   blk.3.ffn_up_exps.weight  NVFP4 [E, H, D]      blk.3.ffn_up_exps.scale  F32 [E] or [1]
///
///   w(e, o, i) = weight(e, o, i) scale(e)
///
/// one rounding to float. NVFP4's second scale stands so in these files, since its blocks have no place for it; where
/// it is 1 it is left out. Scales of activations ("X.input_scale") may be there too, and are not used.
#pragma once

#include <sluice/checkpoint/encoding/coded_matrix.hpp>
#include <sluice/io/conversion_loss.hpp>
#include <sluice/io/safetensors_reader.hpp>
#include <sluice/io/tensor_info.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class scaled_tensor final : public element_decoder {
public:
  /// Throws unfit_parts.
  scaled_tensor(const tensor_info& weight, const tensor_info& scale) : weight_(weight), scale_(scale) {
    if (!detail::holds_weights(weight.number_type()))
      throw unfit_parts(detail::described(weight) + ", which has no numbers to be scaled");
    const std::int64_t matrices = weight.shape.size() == 3 ? weight.shape.front() : 1;
    const bool is_one = scale.elements() == 1 && scale.shape.size() <= 1;
    detail::expect_part(scale, is_one ? scale.shape : std::vector<std::int64_t>{matrices}, {data_type::f32});
    of_a_scale_ = (std::max)(weight.elements() / scale.elements(), std::size_t{1});
  }

  void read(std::size_t first, std::span<float> out) const noexcept override {
    safetensors_reader::copy(weight_, first, out);
    for (std::size_t i = 0; i < out.size();) {
      const std::size_t at = (first + i) / of_a_scale_;
      const float factor = detail::load_element<float>(scale_.bytes, at);
      const std::size_t end = (std::min)(out.size(), (at + 1) * of_a_scale_ - first);
      for (; i < end; ++i) out[i] *= factor;
    }
  }

private:
  tensor_info weight_;
  tensor_info scale_;
  std::size_t of_a_scale_;  // elements that have the same
};

}  // namespace sluice::inline SLUICE_ISA
