// Quantisers of weights: rtn, moqe, finequant, gptq_core, gwq, the ternary cases of qmoe, the allocation and the quantiser of mc_moe.
#include "replays.hpp"

#include <sluice/quant/adaptive_group.hpp>
#include <sluice/quant/bit_allocation.hpp>
#include <sluice/quant/input_moments.hpp>
#include <sluice/quant/outlier_rounding.hpp>
#include <sluice/quant/power_codes.hpp>
#include <sluice/quant/sign_codes.hpp>
#include <sluice/quant/ternary_rounding.hpp>

namespace oracle {
namespace {

using namespace sluice;

// Codes are stored with scales of float, and decode to floats: three roundings of 2^-24 (of the scale, of the decoded number and
// of the file's) where the file was computed in double.
constexpr double stored_in_float = 3 * 0x1p-24;

/// The weights, which the files have in float.
template <typename Scalar>
matrix<float> weights_of(const oracle_case<Scalar>& c, const char* name = "w") {
  return c.rows(name).template cast<float>();
}

template <typename Scalar>
int bits_of_case(const oracle_case<Scalar>& c) {
  return static_cast<int>(c.template setting<index_t>("bits"));
}

/// Codes less their zero, if the file has signed ones.
std::vector<index_t> integers_of(const grouped_codes& codes, bool is_signed) {
  std::vector<index_t> numbers;
  for (index_t o = 0; o < codes.outputs(); ++o)
    for (index_t i = 0; i < codes.inputs(); ++i)
      numbers.push_back(codes.codes(o, i) - (is_signed ? static_cast<index_t>(codes.zeros(o, codes.group_at(i))) : 0));
  return numbers;
}

template <typename Scalar>
void check_decoded(oracle_case<Scalar>& c, const std::string& name, const matrix<float>& decoded) {
  c.check(name, matrix<Scalar>(decoded.template cast<Scalar>()), stored_in_float);
}

/// y = x decoded^T, to what the roundings of decoded weights make of it.
template <typename Scalar>
void check_product(oracle_case<Scalar>& c, const matrix<float>& decoded) {
  const matrix<Scalar> x = c.rows("x"), w = decoded.template cast<Scalar>();
  const matrix<Scalar> most = x.cwiseAbs() * w.cwiseAbs().transpose();
  c.check("y", matrix<Scalar>(x * w.transpose()), 0x1p-24, stored_in_float * static_cast<double>(most.maxCoeff()));
}

template <typename Scalar>
void replay_rtn(oracle_case<Scalar>& c) {
  const grouped_codes codes = round_to_nearest(
      weights_of(c), {.bits = bits_of_case(c),
                      .group = c.template setting<index_t>("group_size"),
                      .range = c.template setting<bool>("sym") ? code_range::symmetric : code_range::min_max});
  c.check_integers("codes", integers_of(codes, false));
  check_decoded(c, "scale", codes.scales);
  check_decoded(c, "zero", codes.zeros);
  check_decoded(c, "dequantised", codes.to_matrix());
  check_product(c, codes.to_matrix());
}

template <typename Scalar>
void replay_moqe(oracle_case<Scalar>& c) {
  const matrix<float> w = weights_of(c);
  const int bits = bits_of_case(c);
  for (const code_range range : {code_range::full, code_range::restricted}) {
    const std::string form = range == code_range::full ? "_a" : "_b";
    const grouped_codes codes = round_to_nearest(w, {.bits = bits, .range = range});
    c.check_integers("codes" + form, integers_of(codes, true));
    check_decoded(c, "scale" + form, codes.scales);
    check_decoded(c, "dequantised" + form, codes.to_matrix());
  }
  const power_codes powers = round_to_powers(w, {.bits = bits});
  std::vector<index_t> exponents;
  for (index_t o = 0; o < w.rows(); ++o)
    for (index_t i = 0; i < w.cols(); ++i) exponents.push_back(powers.exponent(o, i));
  c.check_integers("log_exponent", exponents);
  check_decoded(c, "dequantised_log", powers.to_matrix());
}

template <typename Scalar>
void replay_finequant(oracle_case<Scalar>& c) {
  const matrix<float> w = weights_of(c);
  const adaptive_group_report report =
      adaptive_group(w, {.gain = c.template setting<double>("alpha"), .least = c.template setting<index_t>("g_min")});
  if (report.group != c.template setting<index_t>("group")) c.fail("group " + std::to_string(report.group));
  c.check_integers("group", {&report.group, 1});
  const std::vector<Scalar> ratios(report.ratios.begin(), report.ratios.end());
  c.check("ratios", std::span<const Scalar>(ratios));
  const grouped_codes codes = round_to_nearest(w, {.bits = bits_of_case(c), .group = report.group});
  c.check_integers("codes", integers_of(codes, true));
  check_decoded(c, "scale", codes.scales);
  check_decoded(c, "dequantised", codes.to_matrix());
}

template <typename Scalar>
void replay_gptq_core(oracle_case<Scalar>& c) {
  if (c.template setting<bool>("ternary")) throw unsupported("ternary codes");
  const matrix<float> w = weights_of(c);
  const index_t T = c.axis("x", 0), group = c.template setting<index_t>("group_size");
  input_moments moments(w.cols());
  moments.add<Scalar>(c.rows("x"));
  const matrix<double> h = moments.to_matrix() * (2.0 / static_cast<double>(T));
  c.check("h", matrix<Scalar>(h.template cast<Scalar>()));
  const inverse_factor factor(h, {.damping = c.template setting<double>("percdamp"),
                                  .order_by_activity = c.template setting<bool>("act_order")});
  c.check_integers("order", factor.order());
  const grouped_codes codes =
      compensated_rounding(w, factor,
                           {.bits = bits_of_case(c),
                            .group = group < 0 ? 0 : group,
                            .range = c.template setting<bool>("sym") ? code_range::symmetric : code_range::min_max,
                            .fixed_groups = c.template setting<bool>("static_groups"),
                            .block = c.template setting<index_t>("blocksize")});
  codes.validate();
  c.check_integers("codes", integers_of(codes, false));
  matrix<float> scale(w.rows(), w.cols()), zero(w.rows(), w.cols());
  for (index_t o = 0; o < w.rows(); ++o)
    for (index_t i = 0; i < w.cols(); ++i) {
      scale(o, i) = codes.scale_at(o, i);
      zero(o, i) = codes.zeros(o, codes.group_at(i));
    }
  check_decoded(c, "scale", scale);
  check_decoded(c, "zero", zero);
  check_decoded(c, "q", codes.to_matrix());
  // A decoded number that is off by r of itself moves the error by twice r |w - q| |H| |q|.
  const matrix<double> q = codes.to_matrix().template cast<double>(), d = w.template cast<double>() - q;
  const double moved = 2 * stored_in_float * (d.cwiseAbs() * h.cwiseAbs() * q.cwiseAbs().transpose()).trace();
  const auto error = static_cast<Scalar>((d * h * d.transpose()).trace());
  c.check("trace_error", std::span<const Scalar>(&error, 1), 0x1p-24, moved);
}

template <typename Scalar>
void replay_gwq(oracle_case<Scalar>& c) {
  const matrix<float> w = weights_of(c);
  const outlier_codes codes =
      round_around_outliers(w, weights_of(c, "gradient"),
                            {.fraction = c.template setting<double>("fraction"),
                             .rest = {.bits = bits_of_case(c), .group = c.template setting<index_t>("group_size")}});
  std::vector<index_t> places;
  for (index_t o = 0; o < w.rows(); ++o)
    for (index_t k = codes.outliers.first[as_size(o)]; k < codes.outliers.first[as_size(o + 1)]; ++k)
      places.push_back(o * w.cols() + codes.outliers.input[as_size(k)]);
  c.check_integers("outliers", places);
  c.check_integers("codes", integers_of(codes.rest, true));
  check_decoded(c, "scale", codes.rest.scales);
  check_decoded(c, "dequantised", codes.to_matrix());
  check_product(c, codes.to_matrix());
}

template <typename Scalar>
void replay_qmoe(oracle_case<Scalar>& c) {
  if (!c.config().contains("kind") || c.template setting<std::string>("kind") != "ternary") return replay_ternary_runs(c);
  const auto E = c.template setting<index_t>("E"), T = c.template setting<index_t>("T");
  const matrix<float> w = weights_of(c);
  const matrix<Scalar> x = c.rows("x");
  const index_t n = w.cols(), rows = w.rows() / E;
  matrix<Scalar> h(E * n, n), low(E, rows), high(E, rows);
  matrix<float> q(E * rows, n);
  std::vector<index_t> codes;
  for (index_t e = 0; e < E; ++e) {
    input_moments moments(n);
    if (!c.template setting<bool>("dead_expert") || e + 1 < E) moments.add<Scalar>(x.middleRows(e * T, T));
    const inverse_factor factor(moments.to_matrix(), {.damping = c.template setting<double>("percdamp")});
    const matrix<double> used =
        factor.is_neutral() ? matrix<double>(matrix<double>::Identity(n, n)) : moments.to_matrix();
    h.middleRows(e * n, n) = used.template cast<Scalar>();
    const ternary_codes found = ternary_rounding(w.middleRows(e * rows, rows), factor);
    q.middleRows(e * rows, rows) = found.to_matrix();
    for (index_t r = 0; r < rows; ++r) {
      low(e, r) = static_cast<Scalar>(found.low[as_size(r)]);
      high(e, r) = static_cast<Scalar>(found.high[as_size(r)]);
      for (index_t i = 0; i < n; ++i) codes.push_back(found.codes(r, i));
    }
  }
  c.check("h", h);
  c.check_integers("codes", codes);
  c.check("min", low);
  c.check("max", high);
  check_decoded(c, "q", q);
}

template <typename Scalar>
void replay_mc_moe_allocation(oracle_case<Scalar>& c) {
  const auto in_double = [&](const char* name) {
    const std::vector<Scalar> values = c.numbers(name);
    return std::vector<double>(values.begin(), values.end());
  };
  const matrix<double> cost =
      allocation_costs(in_double("counts"), in_double("weights"), c.rows("eps").template cast<double>(),
                       {.token_exponent = c.template setting<double>("a"),
                        .weight_exponent = c.template setting<double>("b"),
                        .error_exponent = c.template setting<double>("c")});
  c.check("cost", matrix<Scalar>(cost.template cast<Scalar>()));
  const bit_allocation found = allocate_bits(cost, c.template setting<index_t>("budget"));
  c.check_integers("bits", found.bits);
  c.check("optimum", static_cast<Scalar>(found.cost));
  // The second best: the best of those that differ from the best in what an expert gets.
  double second = 0x1p900;
  for (index_t i = 0; i < cost.rows(); ++i) {
    matrix<double> without = cost;
    const index_t barred = found.bits[as_size(i)] - 1;
    without(i, barred) = 1e6 * (1 + cost.sum());
    const double other = allocate_bits(without, c.template setting<index_t>("budget")).cost;
    if (other < without(i, barred)) second = std::min(second, other);
  }
  c.check("second_best", static_cast<Scalar>(second));
}

template <typename Scalar>
void replay_mc_moe_quantiser(oracle_case<Scalar>& c) {
  const matrix<float> w = weights_of(c);
  const auto group = c.template setting<index_t>("block");
  check_decoded(c, "q1", sign_codes(w, group).to_matrix());
  for (const int bits : {2, 3})
    check_decoded(c, "q" + std::to_string(bits),
                  round_to_nearest(w, {.bits = bits, .group = group, .range = code_range::min_max}).to_matrix());
}

}  // namespace

template <typename Scalar>
void mc_moe_bits(oracle_case<Scalar>& c) {
  const auto kind = c.template setting<std::string>("kind");
  if (kind == "allocation")
    replay_mc_moe_allocation(c);
  else if (kind == "quantiser")
    replay_mc_moe_quantiser(c);
  else
    throw unsupported("kind " + kind);
}
template void mc_moe_bits<float>(oracle_case<float>&);
template void mc_moe_bits<double>(oracle_case<double>&);

std::vector<replayer> weight_quantizers() {
  return {
      {"rtn", replay_rtn<float>, replay_rtn<double>},
      {"moqe", replay_moqe<float>, replay_moqe<double>},
      {"finequant", replay_finequant<float>, replay_finequant<double>},
      {"gptq_core", replay_gptq_core<float>, replay_gptq_core<double>},
      {"gwq", replay_gwq<float>, replay_gwq<double>},
      {"qmoe", replay_qmoe<float>, replay_qmoe<double>},
  };
}

}  // namespace oracle
