/// Feed-forward experts whose weights are powers of two with a sign: the matrices of shift experts.
///
///   V = 2^round(P) s,  P clipped to [least shift, 0];  s = sign(round(Q)): -1, 0, 1              round half to even
///   f(x) = phi(x V1^T + fix(b1)) V2^T + fix(b2)           fix rounds down to fixed point (kernel/fixed_point.hpp)
///   straight through round, clip, sign and fix:  dP = dV V ln 2;  dQ = dV, without the power of two
///
///   shift_bank<float> bank{{2, 64, 256}};       activations in fixed point too: fix(phi(fix(x) V1^T + ..)) V2^T + ..
///
/// A product with V is a shift, and a weight takes 5 bits for 15 exponents and two more signs: what dedicated hardware
/// is paid for. A CPU multiplies as fast as it shifts, so V is computed in full precision once a call
/// (computed_bank.hpp) and multiplied as ever; written_out() has it once and for all, stored_as in fewer bits. No
/// derivative by design: finite differences find steps. assign() takes P = log2 |w| and Q = sign w from a dense
/// network; weights that are powers of two in range come back exactly. Initial values: P that of 1/sqrt(fan-in), Q
/// uniform in (-1, 1), biases zero. Elhoushi et al. 2021 (DeepShift), arXiv:1905.13298; You et al. 2023, "ShiftAddViT:
/// Mixture of Multiplication Primitives Towards Efficient Vision Transformer", arXiv:2306.06446, whose released code
/// rounds activations down.
#pragma once

#include <sluice/expert/derived/computed_bank.hpp>
#include <sluice/expert/derived/mapped_inputs.hpp>
#include <sluice/kernel/fixed_point.hpp>

#include <array>
#include <cmath>
#include <numbers>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class power_of_two_weights {
public:
  using scalar = Scalar;
  struct options {
    index_t outputs = 0;
    bool bias = true;
    int least_shift = -14;  ///< 5 bits; of b bits -(2^(b-1) - 2)
  };
  struct tape {
    buffer<Scalar> biases;  ///< of the experts that work, in fixed point
  };

  /// Throws std::invalid_argument if a size is below 1 or the least shift not in [-126, 0].
  power_of_two_weights(index_t experts, index_t inputs, index_t hidden, options o = {})
      : options_(o),
        experts_(experts),
        inputs_(inputs),
        hidden_(hidden),
        outputs_(o.outputs == 0 ? inputs : o.outputs) {
    if (experts < 1 || inputs < 1 || hidden < 1 || outputs_ < 1)
      throw_invalid("power_of_two_weights needs E, D, H, D' >= 1, not ", experts, ", ", inputs, ", ", hidden, ", ",
                    outputs_);
    if (o.least_shift < -126 || o.least_shift > 0) throw_invalid("a least shift cannot be ", o.least_shift);
    for (int power = 0; power >= o.least_shift; --power) powers_.push_back(std::ldexp(Scalar(1), power));
    for (index_t e = 0; e < experts; ++e) {
      parts_.push_back({make(hidden, inputs), make(outputs_, hidden)});
      if (o.bias)
        biases_.push_back({detail::vector_in_lanes<Scalar>(hidden), detail::vector_in_lanes<Scalar>(outputs_)});
    }
  }

  index_t experts() const noexcept { return experts_; }
  index_t inputs() const noexcept { return inputs_; }
  index_t hidden() const noexcept { return hidden_; }
  index_t outputs() const noexcept { return outputs_; }
  bool has_bias() const noexcept { return options_.bias; }
  /// Of the first matrix (0) or the second (1).
  parameter<Scalar>& shift(index_t expert, std::size_t which) noexcept { return parts_[as_size(expert)][which].shift; }
  parameter<Scalar>& sign(index_t expert, std::size_t which) noexcept { return parts_[as_size(expert)][which].sign; }
  parameter<Scalar>& bias(index_t expert, std::size_t which) noexcept { return biases_[as_size(expert)][which]; }

  /// P = log2 |w| and Q = sign w; a weight of zero has Q = 0.
  void assign(index_t expert, std::size_t which, const matrix<Scalar>& w) {
    shift(expert, which).assign(w.unaryExpr([this](const Scalar& v) {
      return v == Scalar(0) ? static_cast<Scalar>(options_.least_shift) : std::log2((std::abs)(v));
    }));
    sign(expert, which).assign(w.unaryExpr([](const Scalar& v) { return Scalar((v > Scalar(0)) - (v < Scalar(0))); }));
  }

  void prepare(tape& t, index_t most, bool) const { t.biases.reserve(most * bias_numbers()); }

  void compute(std::span<const index_t> experts, std::span<computed_maps<Scalar>> maps, tape& t,
               const executor_ref& executor) const {
    const auto count = static_cast<index_t>(experts.size());
    for_panels(count, executor, [&](index_t a, std::size_t which, index_t p) {
      const part& own = parts_[as_size(experts[as_size(a)])][which];
      const computed_maps<Scalar>& to = maps[as_size(a)];
      for_panel(own, p, which == 0 ? to.up : to.down,
                [&](index_t i, Scalar& place) { place = value(own.shift.data()[i], own.sign.data()[i]); });
    });
    if (!options_.bias) return;
    t.biases.assign(count * bias_numbers(), Scalar(0));
    for (index_t a = 0; a < count; ++a) {
      Scalar* const place = t.biases.data() + a * bias_numbers();
      const auto& own = biases_[as_size(experts[as_size(a)])];
      for (index_t i = 0; i < hidden_; ++i) place[i] = fixed_point<>::value(own[0].element_at(i));
      for (index_t i = 0; i < outputs_; ++i) place[in_lanes(hidden_) + i] = fixed_point<>::value(own[1].element_at(i));
    }
  }
  void find_biases(std::span<const index_t>, std::span<computed_maps<Scalar>> maps, const tape& t) const {
    const Scalar* place = t.biases.data();
    for (computed_maps<Scalar>& own : maps) {
      own.up_bias = place, own.down_bias = place + in_lanes(hidden_);
      place += bias_numbers();
    }
  }

  void add_gradients(std::span<const index_t> experts, std::span<computed_maps<Scalar>> maps, tape&,
                     const executor_ref& executor) {
    const auto count = static_cast<index_t>(experts.size());
    ensure_gradients(*this);
    for_panels(count, executor, [&](index_t a, std::size_t which, index_t p) {
      part& own = parts_[as_size(experts[as_size(a)])][which];
      const computed_maps<Scalar>& from = maps[as_size(a)];
      Scalar* const dshift = own.shift.gradient().data();
      Scalar* const dsign = own.sign.gradient().data();
      for_panel(own, p, which == 0 ? from.dup : from.ddown, [&](index_t i, const Scalar& g) {
        const part& read = own;
        dshift[i] += g * value(read.shift.data()[i], read.sign.data()[i]) * std::numbers::ln2_v<Scalar>;
        dsign[i] += g;
      });
    });
    if (!options_.bias) return;
    for (index_t a = 0; a < count; ++a) {
      auto& own = biases_[as_size(experts[as_size(a)])];
      kernel::add_scaled(Scalar(1), maps[as_size(a)].dup_bias, own[0].gradient().data(), hidden_);
      kernel::add_scaled(Scalar(1), maps[as_size(a)].ddown_bias, own[1].gradient().data(), outputs_);
    }
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    constexpr std::array<const char*, 2> names{".up", ".down"};
    for (std::size_t e = 0; e < self.parts_.size(); ++e)
      for (std::size_t which = 0; which < 2; ++which) {
        const std::string name = std::to_string(e) + names[which];
        visit(name + ".shift", self.parts_[e][which].shift);
        visit(name + ".sign", self.parts_[e][which].sign);
        if (self.options_.bias) visit(name + "_bias", self.biases_[e][which]);
      }
  }

private:
  static constexpr index_t lanes = kernel::simd_width<Scalar>;

  struct part {
    parameter<Scalar> shift, sign;  ///< P and Q [out,in]
  };

  static part make(index_t out, index_t in) {
    const double start = std::nearbyint(-0.5 * std::log2(static_cast<double>(in)));
    return {{{out, in}, parameter_role::vector, initial_values::constant(start)},
            {{out, in}, parameter_role::vector, initial_values::uniform(1)}};
  }
  static constexpr index_t in_lanes(index_t count) { return (count + lanes - 1) / lanes * lanes; }
  index_t bias_numbers() const { return options_.bias ? in_lanes(hidden_) + in_lanes(outputs_) : 0; }

  Scalar value(const Scalar& shift, const Scalar& sign) const {
    const Scalar rounded = std::nearbyint(sign), least = static_cast<Scalar>(options_.least_shift);
    if (rounded == Scalar(0)) return 0;
    const Scalar clipped = shift > Scalar(0) ? Scalar(0) : shift > least ? shift : least;  // NaN too
    const Scalar power = powers_[static_cast<std::size_t>(-std::nearbyint(clipped))];
    return rounded > Scalar(0) ? power : -power;
  }

  /// f(expert's place, matrix, panel) for all panels.
  template <typename F>
  void for_panels(index_t count, const executor_ref& executor, F&& f) const {
    const index_t up = in_lanes(hidden_) / lanes, all = up + in_lanes(outputs_) / lanes;
    executor.parallel_blocks(count * all, 4, 4 * lanes * (std::max)(inputs_, hidden_), [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) {
        const index_t p = i % all;
        f(i / all, std::size_t(p >= up), p < up ? p : p - up);
      }
    });
  }
  /// f(place in a row-major array, number of the panel).
  template <typename Number, typename F>
  static void for_panel(const part& own, index_t p, Number* panels, F&& f) {
    const index_t in = own.shift.cols(), rows = (std::min)(lanes, own.shift.rows() - p * lanes);
    for (index_t r = 0; r < rows; ++r)
      for (index_t c = 0; c < in; ++c) f((p * lanes + r) * in + c, panels[(p * in + c) * lanes + r]);
  }

  options options_;
  index_t experts_, inputs_, hidden_, outputs_;
  std::vector<Scalar> powers_;  ///< 1, 1/2, ..
  std::vector<std::array<part, 2>> parts_;
  std::vector<std::array<parameter<Scalar>, 2>> biases_;
};

/// Activations in fixed point too: ShiftAddViT's shift experts.
template <FloatOrDouble Scalar, Activation<Scalar> Phi = gelu>
class shift_bank
    : public mapped_inputs_bank<computed_bank<power_of_two_weights<Scalar>, in_fixed_point<Phi>>, fixed_point<>> {
  using inner_type = computed_bank<power_of_two_weights<Scalar>, in_fixed_point<Phi>>;
  using base = mapped_inputs_bank<inner_type, fixed_point<>>;

public:
  explicit shift_bank(power_of_two_weights<Scalar> weights) : base(inner_type(std::move(weights))) {}
  power_of_two_weights<Scalar>& weights() noexcept { return this->bank().weights(); }
};

static_assert(DifferentiableBank<shift_bank<float>> && RoutedBank<shift_bank<float>>);

}  // namespace sluice::inline SLUICE_ISA
