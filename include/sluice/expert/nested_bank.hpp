/// Nested experts: each is the beginning of one feed-forward network, a wider one the larger it is.
///
///   up W1 [H,D]  up_bias b1 [H]  down W2 [D,H]  down_bias b2 [D]      expert e has width d = widths[e] <= D
///   f_e(x) = (W2[:d,:] phi(W1[:,:d] x[:d] + b1) + b2[:d], 0, ..., 0)             x [n,D]  y [n,D], rows by expert
///   dz = (dy[:d] W2[:d,:]) * phi'(z);  dx = (dz W1[:,:d], 0, ...);  dW1[:,:d] += dz^T x[:d];  dW2[:d,:] += dy[:d]^T a
///
/// The hidden width is H for all: an expert reads and writes fewer channels of the token. An expert of width D is the
/// whole network. All share one copy of the weights, of which they are parts, so what one learns the others know; the
/// cost of a row grows with d. Widths default to D halved for every expert down from the last, D / 2^(E-1-e); biases
/// are optional. NaN within an expert's width stays in its row, beyond it is not read; no rows is fine.
/// Tasks are blocks of rows (y, dx) and of weight rows (gradients), experts in order: equal bits for any thread count.
/// Initial values: normal with deviation 1/sqrt(fan-in), biases zero. Jain et al. 2024 (MoNE), arXiv:2407.19985.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/linear.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, Activation<Scalar> Phi = gelu>
class nested_bank {
public:
  using scalar = Scalar;
  struct options {
    std::vector<index_t> widths{};  ///< one an expert, 1 to D; empty: halved from expert to expert
    bool bias = false;
  };
  struct tape {
    matrix_buffer<Scalar> z;  ///< [rows,H] what phi is applied to
    matrix_buffer<Scalar> a;  ///< [rows,H] what it gave
    matrix_buffer<Scalar> dz;
  };

  /// Throws std::invalid_argument if a size is below 1, D cannot be halved so often, or widths do not fit.
  nested_bank(index_t experts, index_t inputs, index_t hidden, options o = {})
      : has_bias_(o.bias), widths_(std::move(o.widths)) {
    if (experts < 1 || inputs < 1 || hidden < 1)
      throw_invalid("nested_bank needs E, D, H >= 1, not ", experts, ", ", inputs, ", ", hidden);
    if (widths_.empty()) {
      for (index_t e = 0; e < experts; ++e) {
        const index_t halvings = experts - 1 - e;
        if (halvings > 62 || inputs % (index_t{1} << halvings) != 0)
          throw_invalid("D = ", inputs, " cannot be halved ", halvings, " times for E = ", experts, "; give widths");
        widths_.push_back(inputs >> halvings);
      }
    }
    if (static_cast<index_t>(widths_.size()) != experts)
      throw_invalid("nested_bank has ", widths_.size(), " widths for E = ", experts);
    for (const index_t width : widths_)
      if (width < 1 || width > inputs) throw_invalid("a nested expert cannot have width ", width, " of D = ", inputs);
    const auto normal = [](index_t fan_in) {
      return initial_values::normal(1 / std::sqrt(static_cast<double>(fan_in)));
    };
    up_ = {{hidden, inputs}, parameter_role::weight, normal(inputs)};
    down_ = {{inputs, hidden}, parameter_role::weight, normal(hidden)};
    if (has_bias_) {
      up_bias_ = {{hidden}, parameter_role::vector};
      down_bias_ = {{inputs}, parameter_role::vector};
    }
  }

  index_t experts() const noexcept { return static_cast<index_t>(widths_.size()); }
  index_t inputs() const noexcept { return up_.cols(); }
  index_t outputs() const noexcept { return up_.cols(); }
  index_t hidden() const noexcept { return up_.rows(); }
  /// Channels that the expert reads and writes.
  index_t width(index_t expert) const noexcept { return widths_[static_cast<std::size_t>(expert)]; }

  /// Makes room for calls of up to so many rows.
  void prepare(tape& t, index_t rows, bool training) const {
    for (auto* units : {&t.z, &t.a}) units->reserve(rows, hidden());
    if (training) t.dz.reserve(rows, hidden());
  }

  void forward(tokens_in<Scalar> x, const expert_rows& rows, tokens_out<Scalar> y, tape& t,
               const executor_ref& executor) const {
    const index_t base = rows.first_row();
    for (auto* units : {&t.z, &t.a}) units->resize(rows.rows(), hidden());
    for (const auto& [expert, begin, end] : rows) {
      const index_t d = width(expert), first = begin;
      executor.parallel_blocks(end - begin, row_block, d * hidden() / 2, [&, first](index_t from, index_t to) {
        const index_t row = first + from, count = to - from;
        Scalar* z = t.z.row(row - base);
        Scalar* a = t.a.row(row - base);
        kernel::multiply_nt(count, hidden(), d, x.data() + row * x.outerStride(), x.outerStride(), up_.data(), inputs(),
                            z, hidden());
        if (has_bias_)
          for (index_t i = 0; i < count; ++i)
            kernel::add_scaled(Scalar(1), up_bias_.data(), z + i * hidden(), hidden());
        kernel::transform<Scalar>(
            count * hidden(), [](auto v) -> decltype(Phi::value(v)) { return Phi::value(v); }, a, z);
        Scalar* out = y.data() + row * y.outerStride();
        kernel::multiply_nt(count, d, hidden(), a, hidden(), down_.data(), hidden(), out, y.outerStride());
        for (index_t i = 0; i < count; ++i, out += y.outerStride()) {
          if (has_bias_) kernel::add_scaled(Scalar(1), down_bias_.data(), out, d);
          std::fill(out + d, out + outputs(), Scalar(0));
        }
      });
    }
  }

  void backward(tokens_in<Scalar> x, const expert_rows& rows, tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t,
                const executor_ref& executor) {
    const index_t base = rows.first_row();
    t.dz.resize(rows.rows(), hidden());
    for (auto* p : {&up_, &down_}) p->ensure_gradient();
    for (const auto& [expert, begin, end] : rows) {
      const index_t d = width(expert), first = begin, count = end - begin;
      executor.parallel_blocks(count, row_block, d * hidden() / 2, [&, first](index_t from, index_t to) {
        const index_t row = first + from, some = to - from;
        Scalar* dz = t.dz.row(row - base);
        kernel::multiply_nn(some, hidden(), d, dy.data() + row * dy.outerStride(), dy.outerStride(), down_.data(),
                            hidden(), dz, hidden());
        kernel::transform<Scalar>(
            some * hidden(),
            [](auto da, auto z) -> decltype(da * Phi::derivative(z)) { return da * Phi::derivative(z); }, dz,
            static_cast<const Scalar*>(dz), static_cast<const Scalar*>(t.z.row(row - base)));
        Scalar* in = dx.data() + row * dx.outerStride();
        kernel::multiply_nn(some, d, hidden(), dz, hidden(), up_.data(), inputs(), in, dx.outerStride());
        for (index_t i = 0; i < some; ++i, in += dx.outerStride()) std::fill(in + d, in + inputs(), Scalar(0));
      });
      executor.parallel_blocks(hidden(), weight_block, count * d / 4, [&, first](index_t from, index_t to) {
        kernel::multiply_tn(to - from, d, count, t.dz.row(first - base) + from, hidden(),
                            x.data() + first * x.outerStride(), x.outerStride(),
                            up_.gradient().data() + from * inputs(), inputs(), kernel::write::accumulate);
      });
      executor.parallel_blocks(d, weight_block, count * hidden() / 4, [&, first](index_t from, index_t to) {
        kernel::multiply_tn(to - from, hidden(), count, dy.data() + first * dy.outerStride() + from, dy.outerStride(),
                            t.a.row(first - base), hidden(), down_.gradient().data() + from * hidden(), hidden(),
                            kernel::write::accumulate);
      });
      if (!has_bias_) continue;
      for (index_t row = begin; row < end; ++row) {
        kernel::add_scaled(Scalar(1), t.dz.row(row - base), up_bias_.gradient().data(), hidden());
        kernel::add_scaled(Scalar(1), dy.data() + row * dy.outerStride(), down_bias_.gradient().data(), d);
      }
    }
  }

  /// Bytes of a tape that has run `rows` rows, forward or (training) both ways.
  index_t workspace_bytes(index_t rows, bool training) const {
    return (training ? 3 : 2) * rows * hidden() * static_cast<index_t>(sizeof(Scalar));
  }

  parameter<Scalar>& up() noexcept { return up_; }
  parameter<Scalar>& down() noexcept { return down_; }
  parameter<Scalar>& up_bias() noexcept { return up_bias_; }
  parameter<Scalar>& down_bias() noexcept { return down_bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("up", self.up_);
    if (self.has_bias_) visit("up_bias", self.up_bias_);
    visit("down", self.down_);
    if (self.has_bias_) visit("down_bias", self.down_bias_);
  }

private:
  static constexpr index_t row_block = 32;
  static constexpr index_t weight_block = 32;

  bool has_bias_;
  std::vector<index_t> widths_;
  parameter<Scalar> up_, down_, up_bias_, down_bias_;
};

static_assert(DifferentiableBank<nested_bank<float>>);
static_assert(DifferentiableBank<nested_bank<double, relu>>);

}  // namespace sluice::inline SLUICE_ISA
