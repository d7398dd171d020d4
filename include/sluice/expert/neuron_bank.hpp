/// Experts of one neuron each, in two tables: a million of them cost no more to hold than their weights.
///
///   f_e(x) = phi(<down_e, x>) up_e        down [E,D]  up [E,D']  x [n,D]  y [n,D'], rows grouped by expert
///   dz = <dy, up_e> phi'(z);  dx = dz down_e;  d down_e += dz x;  d up_e += phi(z) dy
///
/// A layer's plan is run as it lies: tokens and neurons are read where they are, and outputs are added up where they
/// belong (forward_routed), with the bits of gathering, running and adding; input scales multiply z. Which neurons come
/// next is known, so they are asked for ahead: out of a table that no cache holds, that is most of the time.
///
/// Work and scratch grow with the number of rows, not with E. Gradients are ordinary arrays of the tables' size, but
/// only the rows of experts that had tokens are written: touched() lists them, so that an optimiser may update, and
/// zero_touched_gradients() clear, those rows alone.
/// Tasks are blocks of rows (z), rows or columns (y and dx) and blocks of experts (gradients): equal bits for any
/// thread count. NaN stays in its row. No rows is fine. Initial values: normal, such that the rows of both tables have
/// length about 1. He 2024 (PEER), arXiv:2407.04153.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <utility>

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
    executor.parallel_each(t.expert.size(), inputs() + outputs(), [&](index_t r) {
      t.z[r] = kernel::dot(row(down_, t.expert[r]), x.data() + (begin + r) * x.outerStride(), inputs());
      kernel::copy_scaled(Scalar(Phi::value(t.z[r])), row(up_, t.expert[r]), y.data() + (begin + r) * y.outerStride(),
                          outputs());
    });
  }

  void backward(tokens_in<Scalar> x, const expert_rows& rows, tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t,
                const executor_ref& executor) {
    const index_t begin = rows.first_row();
    t.dz.resize(t.expert.size());
    executor.parallel_each(t.expert.size(), inputs() + outputs(), [&](index_t r) {
      const Scalar da = kernel::dot(row(up_, t.expert[r]), dy.data() + (begin + r) * dy.outerStride(), outputs());
      t.dz[r] = da * Phi::derivative(t.z[r]);
      kernel::copy_scaled(t.dz[r], row(down_, t.expert[r]), dx.data() + (begin + r) * dx.outerStride(), inputs());
    });
    add_gradients(t, executor, [&](index_t r, Scalar* ddown, Scalar* dup) {
      kernel::add_scaled(t.dz[r], x.data() + (begin + r) * x.outerStride(), ddown, inputs());
      kernel::add_scaled(Scalar(Phi::value(t.z[r])), dy.data() + (begin + r) * dy.outerStride(), dup, outputs());
    });
  }

  /// y[target(i)] += weight(i) f(input_scale(i) x[token(i)]) for the rows i of the view.
  void forward_routed(tokens_in<Scalar> x, const routed_rows<Scalar>& rows, tokens_out<Scalar> y, tape& t,
                      const executor_ref& executor) const {
    find_working(rows.by_expert, t);
    for_each_row(rows, down_, t, executor, [&](index_t r, index_t i, const Scalar* down) {
      t.z[r] = kernel::dot_scaled(down, rows.input_scale(i), x.data() + rows.token(i) * x.outerStride(), inputs());
    });
    add_rows_of(up_, rows, t, y, executor, [&](index_t r, index_t i) {
      return addend{rows.target(i), rows.weight(i), Scalar(Phi::value(t.z[r]))};
    });
  }

  /// For the last forward_routed with this tape: adds into dx and the gradients, and writes those of weights and input
  /// scales where the pointers are not null.
  void backward_routed(tokens_in<Scalar> x, const routed_rows<Scalar>& rows, tokens_in<Scalar> dy,
                       tokens_out<Scalar> dx, tape& t, Scalar* dweight, Scalar* dinput_scale,
                       const executor_ref& executor) {
    t.dz.resize(t.expert.size());
    for_each_row(rows, up_, t, executor, [&](index_t r, index_t i, const Scalar* up) {
      const Scalar da = kernel::dot(up, dy.data() + rows.target(i) * dy.outerStride(), outputs());
      if (dweight != nullptr) dweight[i] = da * Scalar(Phi::value(t.z[r]));
      t.dz[r] = rows.weight(i) * da * Phi::derivative(t.z[r]);
      if (dinput_scale != nullptr)
        dinput_scale[i] = t.dz[r] * kernel::dot(row(down_, t.expert[r]), x.data() + rows.token(i) * x.outerStride(),
                                                inputs());
    });
    add_rows_of(down_, rows, t, dx, executor, [&](index_t r, index_t i) {
      return addend{rows.token(i), rows.input_scale(i), t.dz[r]};
    });
    add_gradients(t, executor, [&](index_t r, Scalar* ddown, Scalar* dup) {
      const index_t i = rows.begin() + r;
      kernel::add_scaled(rows.input_scale(i) * t.dz[r], x.data() + rows.token(i) * x.outerStride(), ddown, inputs());
      kernel::add_scaled(rows.weight(i) * Scalar(Phi::value(t.z[r])), dy.data() + rows.target(i) * dy.outerStride(),
                         dup, outputs());
    });
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
  static constexpr index_t rows_ahead = 3;

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

  /// Asks for the row of the table that the row r of the call will want, if there is one.
  static void ask_for(const parameter<Scalar>& table, const tape& t, index_t r) noexcept {
    if (r >= t.expert.size()) return;
    const Scalar* from = row(table, t.expert[r]);
    constexpr index_t line = 64 / static_cast<index_t>(sizeof(Scalar));
    for (index_t c = 0; c < table.cols(); c += line) kernel::prefetch(from + c);
  }

  /// f(r, i, row of the table) for the rows i = begin() + r of the view.
  template <typename F>
  static void for_each_row(const routed_rows<Scalar>& rows, const parameter<Scalar>& table, const tape& t,
                           const executor_ref& executor, F&& f) {
    executor.parallel_each(t.expert.size(), 2 * table.cols(), [&](index_t r) {
      ask_for(table, t, r + rows_ahead);
      f(r, rows.begin() + r, row(table, t.expert[r]));
    });
  }

  /// What a row of the view adds, and to which row: out[row] += outer (inner table[e]).
  struct addend {
    index_t row;
    Scalar outer, inner;
  };
  /// Adds what addend_of(r, i) says for the rows i = begin() + r of the view, in their order. A task owns columns.
  template <typename AddendOf>
  static void add_rows_of(const parameter<Scalar>& table, const routed_rows<Scalar>& rows, const tape& t,
                          tokens_out<Scalar> out, const executor_ref& executor, const AddendOf& addend_of) {
    constexpr index_t lanes = kernel::simd_width<Scalar>, fewest_vectors = 4;
    const index_t vectors = (out.cols() + lanes - 1) / lanes;
    const executor_ref threads = executor.for_work(2 * rows.size() * out.cols());
    const index_t parts = std::clamp<index_t>(vectors / fewest_vectors, 1, threads.concurrency());
    threads.parallel_for(parts, [&](index_t part) {
      const index_t begin = vectors * part / parts * lanes;
      const index_t end = (std::min)(vectors * (part + 1) / parts * lanes, out.cols());
      for (index_t r = 0; r < t.expert.size(); ++r) {
        ask_for(table, t, r + rows_ahead);
        const auto [to_row, outer, inner] = addend_of(r, rows.begin() + r);
        const kernel::simd<Scalar> factor(inner);
        const Scalar* from = row(table, t.expert[r]);
        Scalar* to = out.data() + to_row * out.outerStride();
        index_t c = begin;
        for (; c + lanes <= end; c += lanes)
          kernel::add_weighted<Scalar>(outer, factor * kernel::load(from + c), lanes, to + c);
        if (c < end)
          kernel::add_weighted<Scalar>(outer, factor * kernel::load_part(from + c, end - c, Scalar(0)), end - c,
                                       to + c);
      }
    });
  }

  /// f(r, gradient of down_e, gradient of up_e) for the rows of every expert, in their order.
  template <typename F>
  void add_gradients(const tape& t, const executor_ref& executor, F&& f) {
    Scalar* ddown = down_.gradient().data();
    Scalar* dup = up_.gradient().data();
    executor.parallel_each(t.working.size(), inputs() + outputs(), [&](index_t w) {
      const auto [e, first, last] = t.working[w];
      for (index_t i = first; i < last; ++i) f(i - t.working[0].begin, ddown + e * inputs(), dup + e * outputs());
    });
    note_touched(t);
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

static_assert(DifferentiableBank<neuron_bank<float>> && RoutedBank<neuron_bank<float>>);
static_assert(DifferentiableBank<neuron_bank<double, relu>>);

}  // namespace sluice::inline SLUICE_ISA
