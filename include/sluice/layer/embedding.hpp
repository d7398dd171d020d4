/// An embedding: token t becomes row token_ids[t] of a learned table.
///
///   token_ids [T] in the context, x [T,0]   table [V,D]   y[t] = table[token_ids[t]]   dtable[token_ids[t]] += dy[t]
///
///   embedding_layer<float> words{256, 64};
///   words.forward(ids, y, workspace);                              // y [T,D]
///   sequence model{words, moe_layer{...}, linear_layer<float>{64, 256}};
///   model.forward(no_inputs<float>(T), y, workspace, {.token_ids = ids});
///
/// It has the calls of moe_layer and reads nothing but ids, so its x has no columns. Padding tokens get zero, their ids
/// are not read, and they add nothing to the gradient; an id outside 0 .. V-1 throws std::invalid_argument before
/// anything is written. NaN in a row of the table reaches the tokens of that id alone. T = 0 is fine. Inference is
/// const, thread-safe, and needs no workspace. Gradients are added in the order of the tokens: equal bits for every
/// thread count. Initial values: normal.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/vector_math.hpp>
#include <sluice/layer/call_checks.hpp>

#include <algorithm>
#include <span>

namespace sluice::inline SLUICE_ISA {

/// The x [T,0] of a model that begins with an embedding.
template <std::floating_point Scalar>
const_matrix_map<Scalar> no_inputs(index_t tokens) {
  return {nullptr, tokens, 0};
}

template <FloatOrDouble Scalar>
class embedding_layer {
public:
  using scalar = Scalar;
  using context_type = routing_context<Scalar>;
  static constexpr bool causal = true;
  struct options {
    double deviation = 1;  ///< of the initial values
  };

  struct workspace {};
  struct tape {
    buffer<index_t> ids;  ///< -1 for padding
    executor_ref executor;
    detail::forward_record record;

    Scalar loss() const { return 0; }
  };

  /// Throws std::invalid_argument unless V >= 1, D >= 1 and the deviation is finite and at least 0.
  embedding_layer(index_t ids, index_t outputs, options o = {}) {
    if (ids < 1 || outputs < 1 || !is_at_least(o.deviation, 0))
      throw_invalid("embedding_layer needs V, D >= 1 and a finite deviation >= 0, not ", ids, ", ", outputs, ", ",
                    o.deviation);
    table_ = {{ids, outputs}, parameter_role::weight, initial_values::normal(o.deviation)};
  }

  index_t inputs() const noexcept { return 0; }
  index_t outputs() const noexcept { return table_.cols(); }
  /// V
  index_t ids() const noexcept { return table_.rows(); }

  /// Inference: y [T,D] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, workspace&, const context_type& context) const {
    apply(x, y, context);
  }
  /// Inference, ids alone.
  void forward(std::span<const index_t> ids, tokens_out<Scalar> y, workspace& ws) const {
    context_type context;
    context.token_ids = ids;
    forward(no_inputs<Scalar>(static_cast<index_t>(ids.size())), y, ws, context);
  }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t, const context_type& context) const {
    apply(x, y, context);
    t.record.forget();
    t.ids.resize(x.rows());
    for (index_t token = 0; token < x.rows(); ++token)
      t.ids[token] = context.is_padding(token) ? -1 : id(context, token);
    t.executor = context.executor;
    t.record.keep(this);
  }

  /// Training, ids alone.
  void forward(std::span<const index_t> ids, tokens_out<Scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    context.token_ids = ids;
    forward(no_inputs<Scalar>(static_cast<index_t>(ids.size())), y, t, context);
  }

  /// Adds the gradient of the table, for the last training forward call of this tape. dx [T,0] is there for the sake of
  /// sequences.
  void backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    t.record.validate(this);
    detail::check_backward<Scalar>({inputs(), outputs()}, dy, dx, t.ids.size());
    Scalar* const gradient = table_.gradient().data();
    constexpr index_t columns_per_task = 64;  // a task has columns of its own, whatever ids repeat
    t.executor.parallel_blocks(outputs(), columns_per_task, dy.rows(), [&](index_t begin, index_t end) {
      for (index_t token = 0; token < dy.rows(); ++token)
        if (t.ids[token] >= 0)
          kernel::add_scaled(Scalar(1), dy.data() + token * dy.outerStride() + begin,
                             gradient + t.ids[token] * outputs() + begin, end - begin);
    });
  }

  void backward(tokens_in<Scalar> dy, tape& t) { backward(dy, matrix_map<Scalar>(nullptr, dy.rows(), 0), t); }

  void after_step(tape&) {}

  /// The layer as it is: another storage is a matter of experts.
  template <typename Storage>
  embedding_layer stored_as() const {
    return *this;
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    return training ? rows * static_cast<index_t>(sizeof(index_t)) : 0;
  }

  parameter<Scalar>& table() noexcept { return table_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("table", self.table_);
  }

private:
  static index_t id(const context_type& context, index_t token) {
    return context.token_ids[static_cast<std::size_t>(token)];
  }

  void apply(tokens_in<Scalar> x, tokens_out<Scalar> y, const context_type& context) const {
    check_initialized(*this);
    detail::check_forward<Scalar>({inputs(), outputs()}, x, y, context);
    for (index_t token = 0; token < x.rows(); ++token) {
      if (context.is_padding(token)) continue;
      if (context.token_ids.empty()) throw_invalid("embedding_layer needs routing_context.token_ids");
      if (id(context, token) < 0 || id(context, token) >= ids())
        throw_invalid("id ", id(context, token), " of token ", token, " is not one of the ", ids(),
                      " of the embedding");
    }
    for (index_t token = 0; token < x.rows(); ++token) {
      Scalar* row = y.data() + token * y.outerStride();
      if (context.is_padding(token))
        std::fill_n(row, outputs(), Scalar(0));
      else
        std::copy_n(table_.data() + id(context, token) * outputs(), outputs(), row);
    }
  }

  parameter<Scalar> table_;
};

}  // namespace sluice::inline SLUICE_ISA
