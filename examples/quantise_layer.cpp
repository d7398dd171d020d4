// Experts of four bits by GPTQ: calibration tokens say which inputs matter, and codes go into the experts as they are.
#include <sluice/kernel/format/group_blocks.hpp>
#include <sluice/quant/calibrated_maps.hpp>
#include <sluice/quant/compensated_rounding.hpp>
#include <sluice/sluice.hpp>

#include <iostream>

int main() {
  using namespace sluice;
  constexpr index_t D = 64, H = 96, E = 4, T = 512;

  // Tokens whose inputs depend on one another, as those of models do.
  const random_source draws(7);
  constexpr random_site tokens("example.tokens"), directions("example.directions");
  matrix<float> mix(D, D), x(2 * T, D);
  for (index_t i = 0; i < mix.size(); ++i) mix.data()[i] = static_cast<float>(draws.normal(directions, i)) / 8;
  for (index_t i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(draws.normal(tokens, i));
  x *= mix;

  moe_layer layer{top_k_router<float>{D, E, {.top_k = 2}}, expert_bank<swiglu<float>>{E, D, H}};
  initialize(layer, 7);

  // What every expert's matrices are multiplied with.
  matrix<float> y(T, D), rounded(T, D);
  decltype(layer)::workspace workspace;
  bank_calibration calibration(layer.bank());
  layer.forward(x.topRows(T), y, workspace);
  calibration.add(layer.bank(), x.topRows(T), workspace.plan.routed());
  std::cout << calibration.unseen().size() << " experts saw too few tokens and are rounded plainly\n";

  // Codes of four bits with a scale and a zero point for 32 inputs.
  using four_bits = coded_storage<zero_point_format<4, float16, 32>>;
  auto plain = layer.stored_as<four_bits>(), compensated = plain;
  for_each_calibrated_map(layer.bank(), calibration, {.damping = 0.01}, [&](const calibrated_map& map) {
    auto& expert = compensated.bank().expert(map.expert);
    const grouped_codes codes =
        compensated_rounding(map.weights, map.factor, {.bits = 4, .group = 32, .scales = scale_type::float16});
    assign_codes(map.is_last ? expert.last_map() : expert.first_map(map.number), codes);
  });

  // Tokens that calibration has not seen.
  layer.forward(x.bottomRows(T), y, workspace);
  const auto error_of = [&](auto& other) {
    typename std::remove_cvref_t<decltype(other)>::workspace own;
    other.forward(x.bottomRows(T), rounded, own);
    return (rounded - y).norm() / y.norm();
  };
  const float by_itself = error_of(plain), in_turn = error_of(compensated);
  std::cout << "relative error of the layer at four bits: " << by_itself << " rounded, " << in_turn << " by GPTQ\n";
  return in_turn < by_itself ? 0 : 1;
}
