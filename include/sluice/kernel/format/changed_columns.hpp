/// Any storage of floats with a scale and a bias for every input: W(o, i) = stored(o, i) scale[i] + bias[i].
///
/// What VPTQ's normalisation needs, with no byte in the panels: the two vectors are state that copies share. The weight
/// is rounded as a product and a sum are, or once where the instruction set can. encode() takes the change back and
/// gives the rest to the storage; an input with scale 0 has its bias. Activations and arithmetic in float.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/kernel/storage.hpp>

#include <algorithm>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <WeightStorage Base>
  requires std::same_as<typename Base::scalar, float>
struct changed_columns {
  using scalar = float;
  static constexpr index_t lanes = kernel::simd_width<float>;
  static constexpr index_t block = detail::block_inputs<Base>();

  changed_columns() = default;
  /// scale and bias [in], or empty. Throws std::invalid_argument if they differ in length.
  changed_columns(Base base, std::vector<float> scale, std::vector<float> bias) : base_(std::move(base)) {
    const std::size_t inputs = (std::max)(scale.size(), bias.size());
    if (scale.empty()) scale.assign(inputs, 1.0F);
    if (bias.empty()) bias.assign(inputs, 0.0F);
    if (scale.size() != bias.size()) throw_invalid(scale.size(), " scales of inputs for ", bias.size(), " biases");
    columns_ =
        std::make_shared<const std::pair<std::vector<float>, std::vector<float>>>(std::move(scale), std::move(bias));
  }

  static constexpr index_t bytes(index_t inputs) noexcept { return Base::bytes(inputs / base_step); }
  const Base& base() const noexcept { return base_; }

  void decode(const std::byte* panel, index_t first, index_t last, float* numbers) const {
    base_.decode(panel, first, last, numbers);
    for (index_t i = first; i < last && i < inputs(); ++i, numbers += lanes)
      kernel::store<float>(numbers,
                           kernel::multiply_add<float>(kernel::load(numbers), vector(scale(i)), vector(bias(i))));
  }
  void encode(const float* numbers, index_t first, index_t last, std::byte* panel) const {
    buffer<float> changed((last - first) * lanes);
    std::copy_n(numbers, changed.size(), changed.data());
    for (index_t i = first; i < last && i < inputs(); ++i)
      for (float& w : std::span(changed.data() + (i - first) * lanes, as_size(lanes)))
        w = scale(i) == 0 ? 0.0F : (w - bias(i)) / scale(i);
    base_.encode(changed.data(), first, last, panel);
  }

private:
  using vector = kernel::simd<float>;
  static constexpr index_t base_step = block / Base::block;  ///< inputs of what Base counts

  index_t inputs() const noexcept { return columns_ ? static_cast<index_t>(columns_->first.size()) : 0; }
  float scale(index_t i) const noexcept { return columns_->first[as_size(i)]; }
  float bias(index_t i) const noexcept { return columns_->second[as_size(i)]; }

  Base base_{};
  std::shared_ptr<const std::pair<std::vector<float>, std::vector<float>>> columns_;
};

}  // namespace sluice::inline SLUICE_ISA
