/// Feed-forward experts that are a common core and a small rest of their own: RMoE.
///
///   W_e = core + rest_e  for both matrices;  rest_e [out,in], or of low rank, left_e [out,r] right_e [r,in]
///   f_e(x) = W2_e phi(W1_e x + b1) + b2      biases, if any, belong to the core
///   dcore = sum over experts of dW_e;  drest_e = dW_e;  dleft_e = dW_e right_e^T;  dright_e = left_e^T dW_e
///
///   core_and_rest_bank<float> bank{{dense, 8, {.rank = 4}}};         eight experts that start as this ffn, bit for bit
///
/// Rests start at zero: all experts are the core, and a layer whose weights sum to 1 is the dense one. Training may
/// begin there with the core frozen (set_frozen), so that only rests are learned and stored; a rest of low rank costs r
/// (in + out) numbers. Matrices are computed once a call (computed_bank.hpp). The core's gradient sums experts in
/// ascending order: equal bits for every thread count. Wu et al. 2022, "Residual Mixture of Experts", arXiv:2204.09636;
/// read as a summary only, which does not say how several experts a token are weighed: the router's weights are used as
/// they are.
#pragma once

#include <sluice/expert/derived/computed_bank.hpp>
#include <sluice/kernel/gemm.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class core_and_rest_weights {
public:
  using scalar = Scalar;
  struct options {
    index_t rank = 0;  ///< of the rests; 0: whole matrices
    index_t outputs = 0;
    bool bias = false;
  };
  struct tape {};

  /// Throws std::invalid_argument if a size is below 1 or the rank negative.
  core_and_rest_weights(index_t experts, index_t inputs, index_t hidden, options o = {})
      : experts_(experts), rank_(o.rank), has_bias_(o.bias) {
    const index_t outputs = o.outputs == 0 ? inputs : o.outputs;
    if (experts < 1 || inputs < 1 || hidden < 1 || outputs < 1 || rank_ < 0)
      throw_invalid("core_and_rest_weights needs E, D, H, D' >= 1 and a rank >= 0, not ", experts, ", ", inputs, ", ",
                    hidden, ", ", outputs, " and ", rank_);
    parts_[0] = make(hidden, inputs);
    parts_[1] = make(outputs, hidden);
    if (!has_bias_) return;
    up_bias_ = detail::vector_in_lanes<Scalar>(hidden);
    down_bias_ = detail::vector_in_lanes<Scalar>(outputs);
  }
  /// Experts that start as a dense network: its weights are the core.
  template <typename Phi>
  core_and_rest_weights(const ffn<Scalar, Phi>& dense, index_t experts, options o = {})
      : core_and_rest_weights(experts, dense.inputs(), dense.hidden(),
                              {.rank = o.rank, .outputs = dense.outputs(), .bias = dense.output_bias() != nullptr}) {
    ffn<Scalar, Phi> copy = dense;
    parts_[0].core.assign(copy.up().to_matrix());
    parts_[1].core.assign(copy.down().to_matrix());
    if (!has_bias_) return;
    up_bias_.fill([&](index_t i) { return copy.up_bias().element_at(i); });
    down_bias_.fill([&](index_t i) { return copy.down_bias().element_at(i); });
  }

  index_t experts() const noexcept { return experts_; }
  index_t inputs() const noexcept { return parts_[0].core.cols(); }
  index_t hidden() const noexcept { return parts_[0].core.rows(); }
  index_t outputs() const noexcept { return parts_[1].core.rows(); }
  bool has_bias() const noexcept { return has_bias_; }
  index_t rank() const noexcept { return rank_; }

  /// Of the first matrix (0) or the second (1). rest: rank 0; left, transposed [r,out], and right [r,in]: any other.
  parameter<Scalar>& core(std::size_t which) noexcept { return parts_[which].core; }
  parameter<Scalar>& rest(std::size_t which, index_t expert) noexcept { return parts_[which].rest[as_size(expert)]; }
  parameter<Scalar>& left(std::size_t which, index_t expert) noexcept { return parts_[which].left[as_size(expert)]; }
  parameter<Scalar>& right(std::size_t which, index_t expert) noexcept { return parts_[which].right[as_size(expert)]; }
  parameter<Scalar>& up_bias() noexcept { return up_bias_; }
  parameter<Scalar>& down_bias() noexcept { return down_bias_; }

  void prepare(tape&, index_t, bool) const {}

  void compute(std::span<const index_t> experts, std::span<computed_maps<Scalar>> maps, tape&,
               const executor_ref& executor) const {
    const auto count = static_cast<index_t>(experts.size());
    for (std::size_t which = 0; which < 2; ++which) {
      const matrix_part& part = parts_[which];
      executor.parallel_blocks(count * part.core.layout().panel_count(), panel_block, panel_work(part),
                               [&](index_t begin, index_t end) {
                                 for (index_t i = begin; i < end; ++i)
                                   add_up(part, experts[as_size(i % count)], i / count,
                                          which == 0 ? maps[as_size(i % count)].up : maps[as_size(i % count)].down);
                               });
    }
  }
  void find_biases(std::span<const index_t>, std::span<computed_maps<Scalar>> maps, const tape&) const {
    for (computed_maps<Scalar>& own : maps) own.up_bias = up_bias_.data(), own.down_bias = down_bias_.data();
  }

  void add_gradients(std::span<const index_t> experts, std::span<computed_maps<Scalar>> maps, tape&,
                     const executor_ref& executor) {
    const auto count = static_cast<index_t>(experts.size());
    ensure_gradients(*this);
    for (std::size_t which = 0; which < 2; ++which) {
      matrix_part& part = parts_[which];
      const index_t size = part.core.layout().panel_size();
      const auto gradient = [&](index_t a) { return which == 0 ? maps[as_size(a)].dup : maps[as_size(a)].ddown; };
      if (part.core.has_gradient())
        executor.parallel_blocks(
            part.core.layout().panel_count(), panel_block, count * size / 4, [&](index_t begin, index_t end) {
              for (index_t a = 0; a < count; ++a)
                kernel::add_scaled(Scalar(1), gradient(a) + begin * size, part.core.gradient().data() + begin * size,
                                   (end - begin) * size);
            });
      executor.for_work(count * part.core.layout().panel_count() * panel_work(part))
          .parallel_for(count, [&](index_t a) { add_rest_gradient(part, experts[as_size(a)], gradient(a)); });
    }
    if (!has_bias_) return;
    for (const computed_maps<Scalar>& own : maps) {
      kernel::add_scaled(Scalar(1), own.dup_bias, up_bias_.gradient().data(), hidden());
      kernel::add_scaled(Scalar(1), own.ddown_bias, down_bias_.gradient().data(), outputs());
    }
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    constexpr std::array<const char*, 2> names{"up", "down"};
    for (std::size_t which = 0; which < 2; ++which) {
      auto& part = self.parts_[which];
      const std::string name = names[which];
      visit(name + ".core", part.core);
      for (std::size_t e = 0; e < part.rest.size(); ++e) visit(name + ".rest." + std::to_string(e), part.rest[e]);
      for (std::size_t e = 0; e < part.left.size(); ++e) {
        visit(name + ".left." + std::to_string(e), part.left[e]);
        visit(name + ".right." + std::to_string(e), part.right[e]);
      }
    }
    if (!self.has_bias_) return;
    visit("up_bias", self.up_bias_);
    visit("down_bias", self.down_bias_);
  }

private:
  static constexpr index_t lanes = kernel::simd_width<Scalar>, panel_block = 4;

  struct matrix_part {
    parameter<Scalar> core;                      ///< [out,in] in panels
    std::vector<parameter<Scalar>> rest;         ///< the same; of rank 0
    std::vector<parameter<Scalar>> left, right;  ///< [r,out] and [r,in]
  };

  matrix_part make(index_t out, index_t in) const {
    const auto normal = [](index_t read) { return initial_values::normal(1 / std::sqrt(static_cast<double>(read))); };
    matrix_part part;
    part.core = {{out, in}, parameter_role::weight, normal(in), {.lanes = lanes}};
    for (index_t e = 0; e < experts_; ++e) {
      if (rank_ == 0) {
        part.rest.push_back({{out, in}, parameter_role::weight, {}, {.lanes = lanes}});
        continue;
      }
      part.left.push_back({{rank_, out}, parameter_role::weight, normal(rank_)});
      part.right.push_back({{rank_, in}, parameter_role::weight});
    }
    return part;
  }

  index_t panel_work(const matrix_part& part) const { return part.core.layout().panel_size() * (rank_ + 1) / 2; }
  static index_t rows_of_panel(const matrix_part& part, index_t p) {
    return (std::min)(lanes, part.core.rows() - p * lanes);
  }

  void add_up(const matrix_part& part, index_t expert, index_t p, Scalar* panels) const {
    const index_t size = part.core.layout().panel_size();
    Scalar* const to = panels + p * size;
    const Scalar* const core = part.core.data() + p * size;
    if (rank_ == 0) {
      kernel::transform(
          size, [](const auto& a, const auto& b) { return a + b; }, to, core,
          part.rest[as_size(expert)].data() + p * size);
      return;
    }
    std::copy_n(core, size, to);
    const parameter<Scalar>& left = part.left[as_size(expert)];
    kernel::multiply_tn(part.core.cols(), rows_of_panel(part, p), rank_, part.right[as_size(expert)].data(),
                        part.core.cols(), left.data() + p * lanes, left.cols(), to, lanes, kernel::write::accumulate);
  }

  void add_rest_gradient(matrix_part& part, index_t expert, const Scalar* gradient) const {
    const index_t size = part.core.layout().panel_size(), in = part.core.cols(), out = part.core.rows();
    if (rank_ == 0) {
      parameter<Scalar>& rest = part.rest[as_size(expert)];
      if (rest.has_gradient())
        kernel::add_scaled(Scalar(1), gradient, rest.gradient().data(), part.core.layout().stored_size());
      return;
    }
    parameter<Scalar>& left = part.left[as_size(expert)];
    parameter<Scalar>& right = part.right[as_size(expert)];
    for (index_t p = 0; p < part.core.layout().panel_count(); ++p) {
      const index_t rows = rows_of_panel(part, p);
      kernel::multiply_nn(rank_, rows, in, std::as_const(right).data(), in, gradient + p * size, lanes,
                          left.gradient().data() + p * lanes, out, kernel::write::accumulate);
      kernel::multiply_nt(rank_, in, rows, std::as_const(left).data() + p * lanes, out, gradient + p * size, lanes,
                          right.gradient().data(), in, kernel::write::accumulate);
    }
  }

  index_t experts_, rank_;
  bool has_bias_;
  std::array<matrix_part, 2> parts_;
  parameter<Scalar> up_bias_, down_bias_;
};

template <FloatOrDouble Scalar, Activation<Scalar> Phi = relu>
using core_and_rest_bank = computed_bank<core_and_rest_weights<Scalar>, Phi>;

static_assert(DifferentiableBank<core_and_rest_bank<float>> && RoutedBank<core_and_rest_bank<float>>);

}  // namespace sluice::inline SLUICE_ISA
