/// Every matrix of the experts of a bank with what calibration says of its inputs: the loop around rounding a layer.
///
///   for_each_calibrated_map(layer.bank(), calibration, {.damping = 0.01}, [&](const auto& map) {
///     codes.push_back(compensated_rounding(map.weights, map.factor, {.bits = 4, .group = 128}, executor));
///   }, executor);
///
/// map.weights [out, in] are floats, map.number is 0 .. first maps - 1 for the first ones and the next for the last.
/// First maps read the same, so they share a factor, which is half of the work. In the order of the experts; those of
/// whom the calibration has no moments are left out, those that it saw too little of have the neutral factor. The
/// memory of one expert's factors at a time is held. Throws std::invalid_argument if the calibration is of another
/// bank.
#pragma once

#include <sluice/quant/bank_calibration.hpp>

namespace sluice::inline SLUICE_ISA {

struct calibrated_map {
  index_t expert;
  int number;
  bool is_last;
  const matrix<float>& weights;
  const inverse_factor& factor;
  const input_moments& moments;
};

template <typename Expert, typename F>
void for_each_calibrated_map(const expert_bank<Expert>& bank, const bank_calibration<Expert>& calibration,
                             factor_options o, F&& f, const executor_ref& executor = {}) {
  if (calibration.experts() != bank.experts())
    throw_invalid("a calibration of ", calibration.experts(), " experts is not that of ", bank.experts());
  for (index_t e = 0; e < bank.experts(); ++e) {
    if (!calibration.has_moments_of(e)) continue;
    const Expert& expert = bank.expert(e);
    const auto visit = [&](int number, bool is_last, const auto& map, const inverse_factor& factor) {
      const matrix<float> weights = map.weight().to_matrix().template cast<float>();
      f(calibrated_map{e, number, is_last, weights, factor, is_last ? calibration.last(e) : calibration.first(e)});
    };
    if constexpr (Expert::first_maps > 0) {
      const inverse_factor factor = calibration.factor_of_first(e, o, executor);
      for (int m = 0; m < Expert::first_maps; ++m) visit(m, false, expert.first_map(m), factor);
    }
    visit(Expert::first_maps, true, expert.last_map(), calibration.factor_of_last(e, o, executor));
  }
}

}  // namespace sluice::inline SLUICE_ISA
