/// moved_tensor: a tensor to be written that is put together of matrices of other tensors, from one layout and type to
/// another.
///
/// Its elements are asked for piece by piece, in their order in the new file; those that keep their type keep their
/// bits, others are rounded to nearest, and what that costs is added to `loss`.
#pragma once

#include <sluice/checkpoint/expert_layout.hpp>
#include <sluice/core/half.hpp>
#include <sluice/io/conversion_loss.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/safetensors_reader.hpp>
#include <sluice/io/tensor_info.hpp>

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA::detail {

/// A matrix in the tensor of one file and its place in the tensor of another.
struct moved_matrix {
  const tensor_info* from;
  tensor_place source;
  tensor_place target;
  index_t rows;
  index_t cols;
};

/// A tensor to be written and the matrices that it is put together of.
struct moved_tensor {
  data_type type = {};
  std::vector<moved_matrix> parts = {};
  mutable conversion_loss loss = {};  ///< of what was read

  void read(std::size_t first, std::span<std::byte> out) const {
    const std::size_t size = size_of(type);
    const auto begin = static_cast<index_t>(first);
    for (const moved_matrix& part : parts)
      part.target.for_each_run(
          part.rows, part.cols, begin, begin + static_cast<index_t>(out.size() / size),
          [&](const tensor_place::run& run) {
            const tensor_place& source = part.source;
            index_t at = source.offset + run.row * source.row_stride + run.col * source.col_stride;
            const index_t stride = run.along_row ? source.col_stride : source.row_stride;
            if (part.from->dtype == type && stride == 1 && run.step == 1) {
              std::memcpy(out.data() + static_cast<std::size_t>(run.at) * size,
                          part.from->bytes.data() + static_cast<std::size_t>(at) * size,
                          static_cast<std::size_t>(run.count) * size);
              return;
            }
            for (index_t i = 0; i < run.count; ++i, at += stride) {
              std::byte* const to = out.data() + static_cast<std::size_t>(run.at + i * run.step) * size;
              if (part.from->dtype == type)
                std::memcpy(to, part.from->bytes.data() + static_cast<std::size_t>(at) * size, size);
              else
                convert(*part.from, static_cast<std::size_t>(at), to);
            }
          });
  }

private:
  void convert(const tensor_info& from, std::size_t i, std::byte* to) const noexcept {
    const bool is_exact = is_within(from.dtype, type);
    if (is_exact && type == data_type::f32) {  // keeps the bits of NaN too, which a double between would not
      float widened = 0;
      safetensors_reader::copy(from, i, std::span(&widened, 1));
      std::memcpy(to, &widened, sizeof widened);
      return;
    }
    const double value = weight_at(from, i);
    const auto put = [&]<typename To>(To) {
      if (!is_exact) add_loss<To>(value, loss);
      const To element = to_element<To>(value);
      std::memcpy(to, &element, sizeof element);
    };
    switch (type) {
      case data_type::f64:
        return put(double());
      case data_type::f32:
        return put(float());
      case data_type::bf16:
        return put(bfloat16());
      default:
        return put(float16());
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA::detail
