#include <sluice/quant/ternary_rounding.hpp>

#include <sluice/kernel/format/ternary_runs.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

matrix<double> moments_of_dependent_inputs(index_t tokens, index_t inputs, std::uint64_t seed) {
  const matrix<double> x =
      test::random_matrix<double>(tokens, inputs, seed) * test::random_matrix<double>(inputs, inputs, seed + 1);
  return x.transpose() * x;
}

double trace_error(const matrix<float>& w, const matrix<float>& q, const matrix<double>& h) {
  const matrix<double> d = (w - q).cast<double>();
  return (d * h * d.transpose()).trace();
}

}  // namespace

TEST_CASE("compensated_rounding: with H = I it is plain rounding, bit for bit", "[quant][compensated]") {
  const matrix<float> w = test::random_matrix<float>(70, 150, 1);
  const int bits = GENERATE(2, 4, 8);
  const index_t group = GENERATE(0, 32, 64);
  for (const code_range range :
       {code_range::full, code_range::restricted, code_range::symmetric, code_range::min_max}) {
    const grouped_codes plain = round_to_nearest(w, {.bits = bits, .group = group, .range = range});
    const matrix<double> unit = matrix<double>::Identity(150, 150);
    for (const inverse_factor& factor : {inverse_factor(150), inverse_factor(unit)}) {
      const grouped_codes codes = compensated_rounding(w, factor, {.bits = bits, .group = group, .range = range});
      CHECK(codes.codes == plain.codes);
      CHECK(codes.scales == plain.scales);
      CHECK(codes.zeros == plain.zeros);
      CHECK(codes.group_of.empty());
    }
  }
}

TEST_CASE("compensated_rounding: outputs are nearer than after plain rounding", "[quant][compensated]") {
  const matrix<float> w = test::random_matrix<float>(48, 96, 2);
  const matrix<double> h = moments_of_dependent_inputs(200, 96, 3);
  const double whole = trace_error(w, matrix<float>::Zero(48, 96), h);
  for (const int bits : {2, 3, 4}) {
    const grouped_codes plain = round_to_nearest(w, {.bits = bits, .group = 32, .range = code_range::min_max});
    const double rounded = trace_error(w, plain.to_matrix(), h);
    std::string said = std::to_string(bits) +
                       " bits, relative error of outputs: " + std::to_string(std::sqrt(rounded / whole)) + " rounded";
    for (const bool by_activity : {false, true})
      for (const bool fixed : {false, true}) {
        const inverse_factor factor(h, {.order_by_activity = by_activity});
        const grouped_codes codes =
            compensated_rounding(w, factor, {.bits = bits, .group = 32, .fixed_groups = fixed, .block = 32});
        codes.validate();
        CHECK(codes.group_of.empty() == (fixed || !by_activity));
        const double error = trace_error(w, codes.to_matrix(), h);
        CHECK(error < 0.6 * rounded);
        said += ", " + std::to_string(std::sqrt(error / whole)) + (by_activity ? " by activity" : " in order") +
                (fixed ? " with fixed groups" : "");
      }
    WARN(said);
  }
}

TEST_CASE("compensated_rounding: bits do not depend on threads, results on nothing but the input",
          "[quant][compensated]") {
  const matrix<float> w = test::random_matrix<float>(130, 90, 4);
  const inverse_factor factor(moments_of_dependent_inputs(200, 90, 5), {.order_by_activity = true});
  const grouped_codes codes = compensated_rounding(w, factor, {.bits = 3, .group = 16, .block = 24});
  test::shuffled_threads threads(3);
  const grouped_codes again = compensated_rounding(w, factor, {.bits = 3, .group = 16, .block = 24}, threads);
  CHECK(codes.codes == again.codes);
  CHECK(codes.scales == again.scales);
  CHECK(codes.group_of == again.group_of);
  // A step of a block makes up for nothing within blocks: another result, and a worse one.
  const matrix<double> h = moments_of_dependent_inputs(200, 90, 5);
  const auto error_of_step = [&](index_t step) {
    return trace_error(w, compensated_rounding(w, factor, {.bits = 3, .block = 30, .step = step}).to_matrix(), h);
  };
  CHECK(error_of_step(1) < error_of_step(30));
  // Without groups the length of a block says how products are cut, and nothing else.
  const auto of_blocks = [&](index_t block) {
    return compensated_rounding(w, factor, {.bits = 3, .block = block}).codes;
  };
  CHECK(of_blocks(90) == of_blocks(128));
  CHECK((of_blocks(7).cast<int>() - of_blocks(128).cast<int>()).cwiseAbs().maxCoeff() <= 1);
}

TEST_CASE("compensated_rounding: dead inputs are zero, empty matrices, what does not fit", "[quant][compensated]") {
  matrix<float> w = test::random_matrix<float>(5, 20, 6);
  w(2, 7) = 50;
  matrix<double> h = moments_of_dependent_inputs(40, 20, 7);
  h.row(7).setZero();
  h.col(7).setZero();
  for (const bool by_activity : {false, true}) {
    const inverse_factor factor(h, {.order_by_activity = by_activity});
    for (const bool fixed : {false, true}) {
      const grouped_codes codes = compensated_rounding(w, factor, {.group = 10, .fixed_groups = fixed});
      CHECK(codes.to_matrix().col(7).isZero());
      CHECK(codes.scales.maxCoeff() < 1);  // 50 widened no range
    }
    CHECK(ternary_rounding(w, factor).to_matrix().col(7).isZero());
  }
  CHECK(compensated_rounding(matrix<float>(0, 20), inverse_factor(h)).to_matrix().rows() == 0);
  CHECK(compensated_rounding(matrix<float>(3, 0), inverse_factor(0)).to_matrix().cols() == 0);
  CHECK(ternary_rounding(matrix<float>(3, 0), inverse_factor(0)).to_matrix().cols() == 0);
  CHECK_THROWS_WITH(compensated_rounding(w, inverse_factor(19)),
                    "sluice: weights [5, 20] cannot be rounded by the moments of 19 inputs");
  w(4, 1) = quiet_nan<float>();
  CHECK_THROWS_WITH(compensated_rounding(w, inverse_factor(20)),
                    Catch::Matchers::StartsWith("sluice: the weight of output 4 and input 1 is "));
}

TEST_CASE("ternary_rounding: an input that never was other than 0 is rounded plainly or dropped", "[quant][ternary]") {
  // Both by elimination in NumPy: U the factor of the inverse of H + 0.1 mean(diag H), of which 1 for the dead input is
  // a part or not.
  matrix<double> x(5, 4);
  x << 1, 0, 2, 0.5, 0.8, 0, 1, 1, -1, 0, 0.5, -0.7, 0.3, 0, -1, 0.2, 2, 0, 1.5, 1;
  matrix<float> w(3, 4), kept(3, 4), dropped(3, 4);
  w << -0.64F, -0.96F, -0.71F, -1.19F, 0.15F, 1.03F, 0.16F, 0.62F, 1.63F, 0.27F, 0.2F, -0.28F;
  kept << -1.19F, -1.19F, -1.19F, 0, 0, 1.03F, 0, 1.03F, 1.63F, 0, 0, 0;
  dropped << -1.19F, 0, 0, -1.19F, 0, 0, 0, 1.03F, 1.63F, 0, 0, 0;
  const matrix<double> h = 0.05 * (x.transpose() * x);
  const inverse_factor qmoe(h, {.damping = 0.1, .keeps_dead = true});
  CHECK_FALSE(qmoe.is_dead(1));
  CHECK(ternary_rounding(w, qmoe).to_matrix() == kept);
  CHECK(ternary_rounding(w, inverse_factor(h, {.damping = 0.1})).to_matrix() == dropped);
  CHECK(inverse_factor(h, {.damping = 0.1, .order_by_activity = true, .keeps_dead = true}).order().back() == 1);
  CHECK(inverse_factor(h, {.damping = 0, .keeps_dead = true}).is_neutral());
}

TEST_CASE("ternary_rounding: levels are a row's extremes, and errors are made up for", "[quant][ternary]") {
  matrix<float> w = test::random_matrix<float>(20, 60, 8);
  w.row(3).setZero();
  w.row(4) = w.row(4).cwiseAbs();
  const ternary_codes plain = ternary_rounding(w, inverse_factor(60));
  for (index_t r = 0; r < 20; ++r) {
    const float high = std::max(0.0F, w.row(r).maxCoeff()), low = std::min(0.0F, w.row(r).minCoeff());
    CHECK(plain.high[as_size(r)] == (r == 3 ? 1 : high));
    CHECK(plain.low[as_size(r)] == (r == 3 ? -1 : low));
    for (index_t c = 0; c < 60; ++c)
      CHECK(plain.value(r, c) == (w(r, c) > high / 2 ? high : w(r, c) < low / 2 ? low : 0.0F));
  }
  const ternary_codes kept = ternary_rounding(w, inverse_factor(60), {.bfloat16_levels = true});
  for (index_t r = 0; r < 20; ++r) {
    CHECK(kept.high[as_size(r)] == to_float(round_to<bfloat16>(plain.high[as_size(r)])));
    CHECK(kept.low[as_size(r)] == to_float(round_to<bfloat16>(plain.low[as_size(r)])));
  }
  // Which QMoE's packed rows then hold exactly.
  const ternary_runs packed = ternary_runs::of(kept.to_matrix());
  CHECK(packed.to_matrix() == kept.to_matrix());
  const matrix<double> h = moments_of_dependent_inputs(100, 60, 9);
  const inverse_factor factor(h, {.damping = 0.1});
  CHECK(trace_error(w, ternary_rounding(w, factor).to_matrix(), h) < 0.6 * trace_error(w, plain.to_matrix(), h));
}
