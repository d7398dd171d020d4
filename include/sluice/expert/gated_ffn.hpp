/// Gated feed-forward expert: y = W_down( phi(W_gate x + b_gate) * (W_up x + b_up) * s ) + b_down.
///
///   x [n,D]  gate, up [H,D]  down [D',H]  gate_bias, up_bias, hidden_scale s [H]  down_bias [D']  y [n,D'], n may be 0
///   a = gate x, b = up x, h = phi(a) b s;  dh = dy W_down;  da = dh b s phi'(a);  db = dh phi(a) s;  ds += dh phi(a) b
///   dx = da W_gate + db W_up;  dW_gate += da^T x;  dW_up += db^T x;  dW_down += dy^T h
///
/// swiglu, geglu and reglu are this with SiLU, GELU and ReLU. In place of an activation there may be a gating, an
/// object that makes h of a and b in another way (expert/clamped_glu.hpp). Biases and the hidden scale (ST-MoE's
/// multiplicative bias, initially 1) are optional. Storage says how the three matrices are kept (kernel/storage.hpp).
/// NaN stays in its row. Shazeer 2020, arXiv:2002.05202.
#pragma once

#include <sluice/expert/grouped_alone.hpp>
#include <sluice/kernel/activation.hpp>

namespace sluice::inline SLUICE_ISA {

/// How gate and up become a hidden unit: value(a, b) and gradients(a, b, dh) = {da, db}, on vectors. One with check()
/// is asked when an expert is made.
template <typename G, typename Scalar>
concept Gating = requires(const G& gating, kernel::simd<Scalar> v) {
  { gating.value(v, v) } -> std::same_as<kernel::simd<Scalar>>;
  { gating.gradients(v, v, v) } -> std::same_as<std::array<kernel::simd<Scalar>, 2>>;
};

namespace detail {

/// phi(a) b
template <typename Phi, typename Scalar>
struct activated_gate {
  using vector = kernel::simd<Scalar>;

  vector value(const vector& a, const vector& b) const { return value_of<Phi, Scalar>(a) * b; }
  std::array<vector, 2> gradients(const vector& a, const vector& b, const vector& dh) const {
    return {dh * b * derivative_of<Phi, Scalar>(a), dh * value_of<Phi, Scalar>(a)};
  }
};

template <typename Phi, typename Scalar>
using gating_of = std::conditional_t<Activation<Phi, Scalar>, activated_gate<Phi, Scalar>, Phi>;

}  // namespace detail

template <FloatOrDouble Scalar, typename Phi = silu, MapStorage Storage = full_precision<Scalar>>
  requires(Activation<Phi, Scalar> || Gating<Phi, Scalar>)
class gated_ffn : public grouped_expert<gated_ffn<Scalar, Phi, Storage>, Scalar> {
public:
  using scalar = Scalar;
  using storage = Storage;
  using vector = kernel::simd<Scalar>;
  static constexpr int first_maps = 2;  // gate and up meet in one register tile
  struct options {
    index_t outputs = 0;  ///< D'; 0 means D
    bool bias = false;
    bool hidden_scale = false;
    bool zero_output = false;  ///< the last map starts at zero: what is added beside other layers then does nothing
    SLUICE_NO_UNIQUE_ADDRESS detail::gating_of<Phi, Scalar> gating{};
    double deviation = 0;         ///< of the first values of the three matrices; 0: 1/sqrt(fan-in)
    double output_deviation = 0;  ///< of W_down's, if not as the others'
  };

  /// Throws std::invalid_argument unless D, H and D' are at least 1.
  gated_ffn(index_t inputs, index_t hidden, options o = {})
      : has_bias_(o.bias), has_scale_(o.hidden_scale), gating_(o.gating) {
    const index_t outputs = o.outputs == 0 ? inputs : o.outputs;
    if (inputs < 1 || hidden < 1 || outputs < 1)
      throw_invalid("gated_ffn needs D, H, D' >= 1, not ", inputs, ", ", hidden, ", ", outputs);
    if constexpr (requires { gating_.validate(); }) gating_.validate();
    gate_ = {hidden, inputs, detail::initial_of_map(inputs, o.deviation)};
    up_ = {hidden, inputs, detail::initial_of_map(inputs, o.deviation)};
    down_ = {outputs, hidden,
             o.zero_output
                 ? initial_values::constant(0)
                 : detail::initial_of_map(hidden, o.output_deviation == 0 ? o.deviation : o.output_deviation)};
    if (has_bias_) {
      gate_bias_ = detail::vector_in_lanes<Scalar>(hidden);
      up_bias_ = detail::vector_in_lanes<Scalar>(hidden);
      down_bias_ = detail::vector_in_lanes<Scalar>(outputs);
    }
    if (has_scale_) hidden_scale_ = detail::vector_in_lanes<Scalar>(hidden, initial_values::constant(1));
  }

  index_t inputs() const noexcept { return up_.inputs(); }
  index_t hidden() const noexcept { return up_.outputs(); }
  index_t outputs() const noexcept { return down_.outputs(); }
  const detail::gating_of<Phi, Scalar>& gating() const noexcept { return gating_; }

  auto& gate() noexcept { return gate_.weight(); }
  auto& up() noexcept { return up_.weight(); }
  auto& down() noexcept { return down_.weight(); }
  parameter<Scalar>& gate_bias() noexcept { return gate_bias_; }
  const parameter<Scalar>& gate_bias() const noexcept { return gate_bias_; }
  parameter<Scalar>& up_bias() noexcept { return up_bias_; }
  parameter<Scalar>& down_bias() noexcept { return down_bias_; }
  parameter<Scalar>& hidden_scale() noexcept { return hidden_scale_; }

  /// The same expert with its weights rounded to another storage.
  template <MapStorage Other>
  gated_ffn<Scalar, Phi, Other> stored_as(const Other& format = {}) const {
    return stored_as<Other>([&](int) { return format; });
  }
  /// The same, to what format(matrix) says, 0 for gate, 1 for up and 2 for down.
  template <MapStorage Other, std::invocable<int> Format>
  gated_ffn<Scalar, Phi, Other> stored_as(const Format& format) const {
    gated_ffn<Scalar, Phi, Other> other(
        inputs(), hidden(), {.outputs = outputs(), .bias = has_bias_, .hidden_scale = has_scale_, .gating = gating_});
    other.gate_ = gate_.template stored_as<Other>(format(0));
    other.up_ = up_.template stored_as<Other>(format(1));
    other.down_ = down_.template stored_as<Other>(format(2));
    other.gate_bias_ = gate_bias_;
    other.up_bias_ = up_bias_;
    other.down_bias_ = down_bias_;
    other.hidden_scale_ = hidden_scale_;
    return other;
  }

  // ---- what a bank runs (expert/grouped_rows.hpp) ---------------------------------------

  const linear_map<Storage>& first_map(int i) const noexcept { return i == 0 ? gate_ : up_; }
  linear_map<Storage>& first_map(int i) noexcept { return i == 0 ? gate_ : up_; }
  const linear_map<Storage>& last_map() const noexcept { return down_; }
  linear_map<Storage>& last_map() noexcept { return down_; }
  const Scalar* output_bias() const noexcept { return has_bias_ ? down_bias_.data() : nullptr; }
  Scalar* output_bias_gradient() { return has_bias_ ? down_bias_.gradient().data() : nullptr; }

  vector activate(index_t column, const std::array<vector, 2>& z) const {
    const vector h = gating_.value(with_bias(gate_bias_, column, z[0]), with_bias(up_bias_, column, z[1]));
    return has_scale_ ? h * kernel::load(hidden_scale_.data() + column) : h;
  }
  void activate_backward(index_t column, std::array<vector, 2>& z, const vector& dh) {
    const vector a = with_bias(gate_bias_, column, z[0]);
    const vector b = with_bias(up_bias_, column, z[1]);
    vector upstream = dh;
    if (has_scale_) {
      detail::add_lanes<Scalar>(hidden_scale_.gradient().data() + column, dh * gating_.value(a, b));
      upstream = dh * kernel::load(hidden_scale_.data() + column);
    }
    z = gating_.gradients(a, b, upstream);
    if (!has_bias_) return;
    detail::add_lanes<Scalar>(gate_bias_.gradient().data() + column, z[0]);
    detail::add_lanes<Scalar>(up_bias_.gradient().data() + column, z[1]);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("gate", self.gate_);
    visit("up", self.up_);
    visit("down", self.down_);
    if (self.has_bias_) {
      visit("gate_bias", self.gate_bias_);
      visit("up_bias", self.up_bias_);
      visit("down_bias", self.down_bias_);
    }
    if (self.has_scale_) visit("hidden_scale", self.hidden_scale_);
  }

private:
  template <FloatOrDouble S, typename P, MapStorage W>
    requires(Activation<P, S> || Gating<P, S>)
  friend class gated_ffn;

  vector with_bias(const parameter<Scalar>& bias, index_t column, const vector& z) const {
    return has_bias_ ? z + kernel::load(bias.data() + column) : z;
  }

  bool has_bias_;
  bool has_scale_;
  SLUICE_NO_UNIQUE_ADDRESS detail::gating_of<Phi, Scalar> gating_;
  linear_map<Storage> gate_, up_, down_;
  parameter<Scalar> gate_bias_, up_bias_, down_bias_, hidden_scale_;
};

template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using swiglu = gated_ffn<Scalar, silu, Storage>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using geglu = gated_ffn<Scalar, gelu, Storage>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using reglu = gated_ffn<Scalar, relu, Storage>;

static_assert(MadeOfLinearMaps<swiglu<float>> && DifferentiableExpert<swiglu<float>>);
static_assert(DifferentiableExpert<swiglu<float, bfloat16_storage>>);  // passes gradients on

}  // namespace sluice::inline SLUICE_ISA
