/// Several gates over one bank of experts, a gate a task (MMoE): every task weighs the same experts in its own way.
///
///   x [T,D] -> y [T, Q D'],  columns q D' .. (q+1) D' - 1 are task q's
///   y_q[t] = sum over e of w_q[t,e] f_e(x[t]) (+ b_q)
///   dx = sum over tasks of their dx;  the experts' gradients add up likewise;  db_q = sum over t and columns of dy_q
///
///   multi_gate_layer layer{std::vector(3, dense_softmax_router<float>{64, 8}), experts};
///   multi_gate_layer layer{routers, experts, {.task_bias = true}, importance_loss{}};       // the loss for each task
///
/// Any router will do; dense_softmax_router is MMoE's. A task is a moe_layer over the bank by reference
/// (expert/bank_ref.hpp), which `task(q)` shows: a caller whose tasks have different batches runs that layer alone. The
/// experts run for each task on what its router sends them. Task q is called with context.for_layer(q) and task_id = q,
/// so that tasks draw apart. For exclusive experts (MMoE-Ex) give the gates gate/connected.hpp. b_q is one number a
/// task, zero at first, added to every column of tokens that are not padding.
///
/// The calls and the memory rules are those of moe_layer; padding gets zero, a token with NaN gets NaN in every task.
/// Parameters: "experts", "task.0" ... "task.Q-1", "task_bias". Causal if the router is. Equal bits for every executor
/// and thread count. Ma et al. 2018, "Modeling Task Relationships in Multi-task Learning with Multi-gate
/// Mixture-of-Experts".
#pragma once

#include <sluice/expert/bank_ref.hpp>
#include <sluice/layer/moe_layer.hpp>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct multi_gate_options {
  bool task_bias = false;
};

template <typename Router, typename Bank, typename... Losses>
class multi_gate_layer {
public:
  using task_layer = moe_layer<Router, bank_ref<Bank>, Losses...>;
  using scalar = typename task_layer::scalar;
  using context_type = typename task_layer::context_type;
  static constexpr bool causal = task_layer::causal;

  struct workspace {
    std::vector<typename task_layer::workspace> tasks;
    matrix_buffer<scalar> x;  ///< a copy where y is to replace it
  };
  struct tape {
    std::vector<typename task_layer::tape> tasks;
    matrix_buffer<scalar> x;
    matrix_buffer<scalar> dx;  ///< of one task
    context_type context;
    detail::forward_record record;
    index_t tokens = 0;

    scalar loss() const {
      scalar sum = 0;
      for (const auto& task : tasks) sum += task.loss();
      return sum;
    }
  };

  /// Throws std::invalid_argument if there is no router, or one does not fit the experts.
  multi_gate_layer(const std::vector<Router>& routers, Bank experts, multi_gate_options o = {}, Losses... losses)
      : experts_(std::move(experts)), has_bias_(o.task_bias) {
    if (routers.empty()) throw_invalid("multi_gate_layer needs a router a task, and got none");
    for (const Router& router : routers) tasks_.emplace_back(router, bank_ref<Bank>(experts_), losses...);
    if (has_bias_) bias_ = {{tasks()}, parameter_role::vector};
  }
  // The tasks refer to this very object's experts.
  multi_gate_layer(const multi_gate_layer& other)
      : experts_(other.experts_), tasks_(other.tasks_), has_bias_(other.has_bias_), bias_(other.bias_) {
    rebind();
  }
  multi_gate_layer(multi_gate_layer&& other) noexcept
      : experts_(std::move(other.experts_)),
        tasks_(std::move(other.tasks_)),
        has_bias_(other.has_bias_),
        bias_(std::move(other.bias_)) {
    rebind();
  }
  multi_gate_layer& operator=(multi_gate_layer other) noexcept {
    experts_ = std::move(other.experts_), tasks_ = std::move(other.tasks_);
    has_bias_ = other.has_bias_, bias_ = std::move(other.bias_);
    rebind();
    return *this;
  }

  index_t inputs() const noexcept { return experts_.inputs(); }
  index_t outputs() const noexcept { return tasks() * experts_.outputs(); }
  index_t experts() const noexcept { return experts_.experts(); }
  index_t tasks() const noexcept { return static_cast<index_t>(tasks_.size()); }

  /// Inference: y [T, Q D'] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context = {}) const {
    run(x, y, ws, context);
  }
  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  /// What the context refers to must live until backward has returned.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context) const {
    t.record.forget();
    run(x, y, t, context);
    t.context = context;
    t.tokens = x.rows();
    t.record.keep(this);
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) requires TrainableLayer<task_layer> {
    t.record.validate(this);
    detail::check_backward<multi_gate_layer, scalar>(*this, dy, dx, t.tokens);
    ensure_gradients(*this);
    dx.setZero();
    t.dx.resize(dx.rows(), dx.cols());
    for (index_t q = 0; q < tasks(); ++q) {
      const auto own = dy.middleCols(q * experts_.outputs(), experts_.outputs());
      tasks_[as_size(q)].backward(own, t.dx.map(), t.tasks[as_size(q)]);
      dx += t.dx.map();
      if (!has_bias_) continue;
      for (index_t token = 0; token < dy.rows(); ++token)
        if (!t.context.is_padding(token)) bias_.gradient()[as_size(q)] += own.row(token).sum();
    }
  }
  detail::refused backward(tokens_in<scalar>, tokens_out<scalar>, tape&) requires(!TrainableLayer<task_layer>) {
    static_assert(explain_training());
    return {};
  }
  static consteval bool explain_training() { return explain_trainable_layer<task_layer>(); }

  void after_step(tape& t) {
    for (index_t q = 0; q < tasks(); ++q) tasks_[as_size(q)].after_step(t.tasks[as_size(q)]);
  }

  /// The same gates over experts whose weights are rounded to another storage, for inference: without the losses.
  template <typename Storage>
  auto stored_as() const {
    std::vector<Router> routers;
    for (const task_layer& task : tasks_) routers.push_back(task.router());
    auto bank = experts_.template stored_as<Storage>();
    multi_gate_layer<Router, decltype(bank)> other(routers, std::move(bank), {.task_bias = has_bias_});
    other.task_bias() = bias_;
    return other;
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    index_t bytes = rows * inputs() * static_cast<index_t>(sizeof(scalar)) * (training ? 2 : 1);
    for (const task_layer& task : tasks_) bytes += task.workspace_bytes(rows, training);
    return bytes;
  }

  task_layer& task(index_t q) noexcept { return tasks_[as_size(q)]; }
  const task_layer& task(index_t q) const noexcept { return tasks_[as_size(q)]; }
  Bank& bank() noexcept { return experts_; }
  const Bank& bank() const noexcept { return experts_; }
  /// b [Q], empty without task_bias
  parameter<scalar>& task_bias() noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Bank>) visit("experts", self.experts_);
    if constexpr (HasParameters<task_layer>)
      for (std::size_t q = 0; q < self.tasks_.size(); ++q) visit("task." + std::to_string(q), self.tasks_[q]);
    if (self.has_bias_) visit("task_bias", self.bias_);
  }

private:
  void rebind() noexcept {
    for (task_layer& task : tasks_) task.bank().rebind(experts_);
  }

  template <typename Memory>
  void run(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    detail::check_forward<multi_gate_layer, scalar>(*this, x, y, context);
    if (m.tasks.size() != tasks_.size()) m.tasks.resize(tasks_.size());
    if (inputs() == outputs()) m.x.reserve(x.rows(), inputs());  // a later call may be in place
    if (x.data() != y.data()) return run_tasks(x, y, m, context);
    m.x.resize(x.rows(), x.cols());
    m.x.map() = x;
    run_tasks(m.x.map(), y, m, context);
  }

  template <typename Memory>
  void run_tasks(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    for (index_t q = 0; q < tasks(); ++q) {
      context_type own = context.for_layer(q);
      own.task_id = q;
      auto columns = y.middleCols(q * experts_.outputs(), experts_.outputs());
      tasks_[as_size(q)].forward(x, columns, m.tasks[as_size(q)], own);
      if (!has_bias_) continue;
      for (index_t token = 0; token < y.rows(); ++token)
        if (!context.is_padding(token)) columns.row(token).array() += bias_.data()[q];
    }
  }

  Bank experts_;
  std::vector<task_layer> tasks_;
  bool has_bias_;
  parameter<scalar> bias_;
};

}  // namespace sluice::inline SLUICE_ISA
