/// A bank of which a call uses the first experts, each the leading block of a larger one (sliced_ffn.hpp): a network of
/// experts that holds all smaller ones.
///
///   sliced_bank<float> bank{6, 512, 3072};                     at most 6 experts, D = 512, H = 3072
///   bank.select(384, {3072, 1024, 2048});                      three experts of these H, on tokens of width 384
///
/// The gate goes along: sliced_gate::select (gate/sliced.hpp). Training a large layer under many selections trains all
/// its sub-networks; cut_out() is the selected one alone, an expert_bank. Experts that are not selected get no rows and
/// no gradient. All calls are expert_bank's. Jawahar et al. 2023 (AutoMoE), arXiv:2210.07535.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/derived/sliced_ffn.hpp>

#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, Activation<Scalar> Phi = relu>
class sliced_bank : public expert_bank<sliced_ffn<Scalar, Phi>> {
  using base = expert_bank<sliced_ffn<Scalar, Phi>>;

public:
  using options = typename sliced_ffn<Scalar, Phi>::options;

  /// The most experts, and the largest D and H.
  sliced_bank(index_t experts, index_t inputs, index_t hidden, options o = {})
      : base(experts, sliced_ffn<Scalar, Phi>(inputs, hidden, o)), selected_(experts) {}

  index_t experts() const noexcept { return selected_; }
  index_t most_experts() const noexcept { return base::experts(); }

  /// One hidden width an expert; outputs 0 means as many as inputs. Throws std::invalid_argument if there are no or too
  /// many, or a block does not fit; then nothing changes.
  void select(index_t inputs, const std::vector<index_t>& hidden, index_t outputs = 0) {
    const auto count = static_cast<index_t>(hidden.size());
    if (count < 1 || count > most_experts())
      throw_invalid("of ", most_experts(), " experts ", count, " cannot be selected");
    if (outputs == 0) outputs = inputs;
    for (const index_t width : hidden) sliced_ffn<Scalar, Phi>(this->expert(0)).select(inputs, width, outputs);
    for (index_t e = 0; e < most_experts(); ++e)
      this->expert(e).select(inputs, hidden[as_size((std::min)(e, count - 1))], outputs);
    selected_ = count;
  }

  /// The selected experts as a bank of their own.
  expert_bank<ffn<Scalar, Phi>> cut_out() const {
    std::vector<ffn<Scalar, Phi>> own;
    for (index_t e = 0; e < selected_; ++e) own.push_back(this->expert(e).cut_out());
    return expert_bank<ffn<Scalar, Phi>>(std::move(own));
  }
  /// The same, their weights rounded to another storage.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    return cut_out().template stored_as<Storage>(format...);
  }

private:
  index_t selected_;
};

static_assert(DifferentiableBank<sliced_bank<float>> && RoutedBank<sliced_bank<float>>);

}  // namespace sluice::inline SLUICE_ISA
