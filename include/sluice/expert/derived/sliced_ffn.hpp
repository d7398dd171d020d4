/// A feed-forward expert that is the leading block of a larger one: y = W2[:D',:H] phi(W1[:H,:D] x + b1[:H]) + b2[:D'].
///
///   up W1 [most H, most D]  up_bias [most H]  down W2 [most D', most H]  down_bias [most D']      x [n,D]  y [n,D']
///
/// select(D, H, D') says which block; at first it is the whole. Networks of different widths so share one set of
/// weights, each a part of every wider one. The block is a view of the panels: nothing is copied, and it costs what an
/// expert of its size costs. Gradients lie in the large arrays; outside the block nothing is added. Biases are
/// optional. NaN stays in its row; no rows is fine. Initial values: normal with deviation 1/sqrt(largest fan-in),
/// biases zero. sliced_bank.hpp holds several. Jawahar et al. 2023, "AutoMoE: Heterogeneous Mixture-of-Experts with
/// Adaptive Computation for Efficient Neural Machine Translation", arXiv:2210.07535.
#pragma once

#include <sluice/expert/ffn.hpp>

#include <array>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, Activation<Scalar> Phi = relu>
class sliced_ffn : public grouped_expert<sliced_ffn<Scalar, Phi>, Scalar> {
public:
  using scalar = Scalar;
  using vector = kernel::simd<Scalar>;
  using options = typename ffn<Scalar, Phi>::options;
  static constexpr int first_maps = 1;

  /// The largest D and H, and in options D'. Throws std::invalid_argument unless they are at least 1.
  sliced_ffn(index_t inputs, index_t hidden, options o = {})
      : has_bias_(o.bias), inputs_(inputs), hidden_(hidden), outputs_(o.outputs == 0 ? inputs : o.outputs) {
    if (inputs < 1 || hidden < 1 || outputs_ < 1)
      throw_invalid("sliced_ffn needs D, H, D' >= 1, not ", inputs, ", ", hidden, ", ", outputs_);
    up_ = {hidden, inputs};
    down_ = {outputs_, hidden};
    if (has_bias_) {
      up_bias_ = detail::vector_in_lanes<Scalar>(hidden);
      down_bias_ = detail::vector_in_lanes<Scalar>(outputs_);
    }
  }

  /// Throws std::invalid_argument if the block is empty or larger than the whole.
  void select(index_t inputs, index_t hidden, index_t outputs) {
    if (inputs < 1 || inputs > up_.inputs() || hidden < 1 || hidden > up_.outputs() || outputs < 1 ||
        outputs > down_.outputs())
      throw_invalid("an expert ", up_.inputs(), " -> ", up_.outputs(), " -> ", down_.outputs(), " has no block ",
                    inputs, " -> ", hidden, " -> ", outputs);
    inputs_ = inputs, hidden_ = hidden, outputs_ = outputs;
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t hidden() const noexcept { return hidden_; }
  index_t outputs() const noexcept { return outputs_; }
  index_t most_inputs() const noexcept { return up_.inputs(); }
  index_t most_hidden() const noexcept { return up_.outputs(); }
  index_t most_outputs() const noexcept { return down_.outputs(); }

  auto& up() noexcept { return up_.weight(); }
  auto& down() noexcept { return down_.weight(); }
  parameter<Scalar>& up_bias() noexcept { return up_bias_; }
  parameter<Scalar>& down_bias() noexcept { return down_bias_; }

  /// The block as an expert of its own, to go on alone.
  ffn<Scalar, Phi> cut_out() const {
    ffn<Scalar, Phi> own(inputs_, hidden_, {.outputs = outputs_, .bias = has_bias_});
    own.up().assign(up_.weight().to_matrix().topLeftCorner(hidden_, inputs_));
    own.down().assign(down_.weight().to_matrix().topLeftCorner(outputs_, hidden_));
    if (has_bias_) {
      own.up_bias().fill([&](index_t i) { return up_bias_.element_at(i); });
      own.down_bias().fill([&](index_t i) { return down_bias_.element_at(i); });
    }
    return own;
  }

  // ---- what a bank runs (expert/grouped_rows.hpp) ---------------------------------------

  learned_map_view<Scalar> first_map(int) const { return part(up_, hidden_, inputs_, nullptr); }
  learned_map_view<Scalar> first_map(int) { return part(up_, hidden_, inputs_, up_.gradient_panel(0)); }
  learned_map_view<Scalar> last_map() const { return part(down_, outputs_, hidden_, nullptr); }
  learned_map_view<Scalar> last_map() { return part(down_, outputs_, hidden_, down_.gradient_panel(0)); }
  const Scalar* output_bias() const noexcept { return has_bias_ ? down_bias_.data() : nullptr; }
  Scalar* output_bias_gradient() { return has_bias_ ? down_bias_.gradient().data() : nullptr; }

  /// Lanes past H are not read, and their gradient is zero.
  vector activate(index_t column, const std::array<vector, 1>& z) const {
    return detail::value_of<Phi, Scalar>(with_bias(column, z[0]));
  }
  void activate_backward(index_t column, std::array<vector, 1>& z, const vector& dh) {
    z[0] = dh * detail::derivative_of<Phi, Scalar>(with_bias(column, z[0]));
    if (has_bias_) detail::add_lanes<Scalar>(up_bias_.gradient().data() + column, z[0]);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("up", self.up_);
    if (self.has_bias_) visit("up_bias", self.up_bias_);
    visit("down", self.down_);
    if (self.has_bias_) visit("down_bias", self.down_bias_);
  }

private:
  static learned_map_view<Scalar> part(const linear_map<full_precision<Scalar>>& map, index_t outputs, index_t inputs,
                                       Scalar* gradient) {
    learned_map_view<Scalar> view;
    static_cast<linear_map_view<full_precision<Scalar>>&>(view) = map.view().part(0, outputs, inputs);
    view.first_gradient = gradient;
    return view;
  }
  vector with_bias(index_t column, const vector& z) const {
    return has_bias_ ? z + kernel::load(up_bias_.data() + column) : z;
  }

  bool has_bias_;
  index_t inputs_, hidden_, outputs_;
  linear_map<full_precision<Scalar>> up_, down_;
  parameter<Scalar> up_bias_, down_bias_;
};

static_assert(MadeOfTrainableMaps<sliced_ffn<float>> && DifferentiableExpert<sliced_ffn<float>>);

}  // namespace sluice::inline SLUICE_ISA
