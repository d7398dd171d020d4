/// Experts of one neuron each, in two tables: a million of them cost no more to hold than their weights.
///
///   f_e(x) = phi(<down_e, x>) up_e        down [E,D]  up [E,D']  x [n,D]  y [n,D'], rows grouped by expert
///   dz = <dy, up_e> phi'(z);  dx = dz down_e;  d down_e += dz x;  d up_e += phi(z) dy
///
/// Work and scratch grow with the number of rows, not with E. Gradients are ordinary arrays of the tables' size, but
/// only the rows of experts that had tokens are written: touched() lists them, so that an optimiser may update, and
/// zero_touched_gradients() clear, those rows alone.
/// Tasks are blocks of rows (y and dx) and blocks of experts (gradients): equal bits for any thread count. NaN stays in
/// its row. No rows is fine. Initial values: normal, such that the rows of both tables have length about 1.
/// He 2024 (PEER), arXiv:2407.04153.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, Activation<Scalar> Phi = gelu>
class neuron_bank {
public:
  using scalar = Scalar;
  struct options {
    index_t outputs = 0;  ///< D'; 0 means D
  };
  struct tape {
    buffer<index_t> expert;     ///< of each row
    buffer<row_range> working;  ///< experts that have rows, ascending
    buffer<Scalar> z;
    buffer<Scalar> dz;
  };

  /// Throws std::invalid_argument unless E, D and D' are at least 1.
  neuron_bank(index_t experts, index_t inputs, options o = {}) {
    const index_t outputs = o.outputs == 0 ? inputs : o.outputs;
    if (experts < 1 || inputs < 1 || outputs < 1)
      throw_invalid("neuron_bank needs E, D, D' >= 1, not ", experts, ", ", inputs, ", ", outputs);
    down_ = {
        {experts, inputs}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
    up_ = {{experts, outputs},
           parameter_role::weight,
           initial_values::normal(1 / std::sqrt(static_cast<double>(outputs)))};
  }

  index_t experts() const noexcept { return down_.rows(); }
  index_t inputs() const noexcept { return down_.cols(); }
  index_t outputs() const noexcept { return up_.cols(); }

  /// Makes room for calls of up to so many rows.
  void prepare(tape& t, index_t rows, bool training) const {
    t.expert.reserve(rows);
    t.working.reserve((std::min)(rows, experts()));
    t.z.reserve(rows);
    if (training) t.dz.reserve(rows);
  }

  void forward(tokens_in<Scalar> x, const expert_rows& rows, tokens_out<Scalar> y, tape& t,
               const executor_ref& executor) const {
    find_working(rows, t);
    const index_t begin = rows.first_row();
    executor.parallel_blocks(t.expert.size(), row_block, inputs() + outputs(), [&](index_t from, index_t to) {
      for (index_t r = from; r < to; ++r) {
        t.z[r] = kernel::dot(row(down_, t.expert[r]), x.data() + (begin + r) * x.outerStride(), inputs());
        kernel::copy_scaled(Scalar(Phi::value(t.z[r])), row(up_, t.expert[r]), y.data() + (begin + r) * y.outerStride(),
                            outputs());
      }
    });
  }

  void backward(tokens_in<Scalar> x, const expert_rows& rows, tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t,
                const executor_ref& executor) {
    const index_t begin = rows.first_row();
    t.dz.resize(t.expert.size());
    executor.parallel_blocks(t.expert.size(), row_block, inputs() + outputs(), [&](index_t from, index_t to) {
      for (index_t r = from; r < to; ++r) {
        const Scalar da = kernel::dot(row(up_, t.expert[r]), dy.data() + (begin + r) * dy.outerStride(), outputs());
        t.dz[r] = da * Phi::derivative(t.z[r]);
        kernel::copy_scaled(t.dz[r], row(down_, t.expert[r]), dx.data() + (begin + r) * dx.outerStride(), inputs());
      }
    });
    Scalar* ddown = down_.gradient().data();
    Scalar* dup = up_.gradient().data();
    executor.parallel_blocks(t.working.size(), expert_block, inputs() + outputs(), [&](index_t from, index_t to) {
      for (index_t w = from; w < to; ++w) {
        const auto [e, first, last] = t.working[w];
        for (index_t i = first; i < last; ++i) {
          kernel::add_scaled(t.dz[i - begin], x.data() + i * x.outerStride(), ddown + e * inputs(), inputs());
          kernel::add_scaled(Scalar(Phi::value(t.z[i - begin])), dy.data() + i * dy.outerStride(), dup + e * outputs(),
                             outputs());
        }
      }
    });
    note_touched(t);
  }

  /// Bytes of a tape that has run `rows` rows, forward or (training) both ways.
  index_t workspace_bytes(index_t rows, bool training) const {
    constexpr auto number = static_cast<index_t>(sizeof(Scalar));
    return rows * (static_cast<index_t>(sizeof(index_t)) + (training ? 2 : 1) * number) +
           (std::min)(rows, experts()) * static_cast<index_t>(sizeof(row_range));
  }

  /// Experts whose gradients were written since zero_touched_gradients(), in the order of their first use.
  std::span<const index_t> touched() const noexcept { return touched_.span(); }

  /// Zeroes the gradient rows of touched(), and those only.
  void zero_touched_gradients() noexcept {
    for (const index_t e : touched_) {
      std::fill_n(down_.gradient().data() + e * inputs(), inputs(), Scalar(0));
      std::fill_n(up_.gradient().data() + e * outputs(), outputs(), Scalar(0));
      is_touched_[e] = 0;
    }
    touched_.clear();
  }

  parameter<Scalar>& down() noexcept { return down_; }
  parameter<Scalar>& up() noexcept { return up_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("down", self.down_);
    visit("up", self.up_);
  }

private:
  // A row is two passes over D numbers: this many repay handing out a task.
  static constexpr index_t row_block = 128;
  static constexpr index_t expert_block = 128;

  static const Scalar* row(const parameter<Scalar>& table, index_t e) noexcept {
    return table.data() + e * table.cols();
  }

  static void find_working(const expert_rows& rows, tape& t) {
    t.expert.resize(rows.rows());
    t.z.resize(rows.rows());
    t.working.clear();
    for (const row_range& own : rows) {
      t.working.push_back(own);
      std::fill_n(t.expert.begin() + own.begin - rows.first_row(), own.size(), own.expert);
    }
  }

  void note_touched(const tape& t) {
    if (is_touched_.empty()) {
      touched_.reserve(experts());
      is_touched_.assign(experts(), 0);
    }
    for (const row_range& own : t.working)
      if (!is_touched_[own.expert]) {
        is_touched_[own.expert] = 1;
        touched_.push_back(own.expert);
      }
  }

  parameter<Scalar> down_, up_;
  buffer<index_t> touched_;
  buffer<std::uint8_t> is_touched_;
};

static_assert(DifferentiableBank<neuron_bank<float>>);
static_assert(DifferentiableBank<neuron_bank<double, relu>>);

}  // namespace sluice::inline SLUICE_ISA
