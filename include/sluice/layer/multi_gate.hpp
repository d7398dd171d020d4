/// Several gates over one bank of experts, a gate a task (MMoE): every task weighs the same experts in its own way.
///
///   x [T,D] -> y [T, Q D'],  columns q D' .. (q+1) D' - 1 are task q's
///   y_q[t] = sum over e of w_q[t,e] f_e(x[t]) (+ b_q)
///   dx = sum over tasks of their dx;  the experts' gradients add up likewise;  db_q = sum over t and columns of dy_q
///
///   multi_gate_layer layer{std::vector(3, dense_softmax_router<float>{64, 8}), experts};
///   multi_gate_layer layer{routers, experts, {.task_bias = true}, importance_loss{}};       // the loss for each task
///
/// Any router will do; dense_softmax_router is MMoE's. All tasks route, then each expert runs once, on every token that
/// any task sends it (layer/joined_rows.hpp), then each task weighs what it asked for: with dense gates that is E
/// evaluations of the batch for any number of tasks, forward and backward. Rows that a router scales or mixes are its
/// task's own. Experts that mix tokens are refused: they would see those of other tasks; those that look at encoders
/// want one sequence, or all tokens at the first gate. Task q routes with context.for_layer(q) and task_id = q, so that
/// tasks draw apart. For exclusive experts (MMoE-Ex) give the gates gate/connected.hpp. b_q is one number a task, zero
/// at first, added to every column of tokens that are not padding. `task(q)` is a moe_layer over the bank by reference
/// (expert/bank_ref.hpp): a caller whose tasks have different batches runs that layer alone.
///
/// The calls and the memory rules are those of moe_layer; padding gets zero, a token with NaN gets NaN in every task.
/// Parameters: "experts", "task.0" ... "task.Q-1", "task_bias". Causal if the router is. Equal bits for every executor
/// and thread count. Ma et al. 2018, "Modeling Task Relationships in Multi-task Learning with Multi-gate
/// Mixture-of-Experts".
#pragma once

#include <sluice/expert/bank_ref.hpp>
#include <sluice/layer/joined_rows.hpp>
#include <sluice/layer/kept_rows.hpp>
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
  static_assert(!is_token_mixer<Bank>, "sluice: experts that mix tokens have no rows in common for several gates");

public:
  using task_layer = moe_layer<Router, bank_ref<Bank>, Losses...>;
  using scalar = typename task_layer::scalar;
  using context_type = typename task_layer::context_type;
  static constexpr bool causal = task_layer::causal;

private:
  /// What a forward call needs, with what each task has of its own: plan, router, statistics.
  template <typename TaskMemory>
  struct memory {
    std::vector<TaskMemory> tasks;
    joined_rows joined;
    buffer<index_t> tokens;  ///< scratch: of the bank's rows
    typename Bank::tape experts;
    matrix_buffer<scalar> rows, outputs;          ///< the bank's
    matrix_buffer<scalar> own_rows, own_outputs;  ///< scratch: those of one task
    detail::forward_record record;
  };

public:
  struct workspace : memory<typename task_layer::workspace> {};
  struct tape : memory<typename task_layer::tape> {
    matrix_buffer<scalar> x;
    matrix_buffer<scalar> drows, doutputs;  ///< the bank's
    matrix_buffer<scalar> own_doutputs;     ///< scratch: those of one task
    context_type context;

    scalar loss() const {
      scalar sum = 0;
      for (const auto& task : this->tasks) sum += task.loss();
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
    detail::check_forward<scalar>({inputs(), outputs()}, x, y, context);
    ws.record.check_values(*this);
    ws.record.forget();
    run(x, y, ws, context, false);
  }
  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  /// What the context refers to must live until backward has returned.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context) const {
    detail::check_forward<scalar>({inputs(), outputs()}, x, y, context);
    t.record.check_values(*this);
    t.record.forget();
    t.context = context;
    detail::keep_without_padding<scalar>(x, context, t.x);
    run(t.x.map(), y, t, context, true);
    for (index_t q = 0; q < tasks(); ++q) {
      t.tasks[as_size(q)].context = task_context(context, q);
      tasks_[as_size(q)].evaluate_losses(t.tasks[as_size(q)]);
    }
    t.record.keep(this);
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) requires TrainableLayer<task_layer> {
    t.record.validate(this);
    detail::check_backward<scalar>({inputs(), outputs()}, dy, dx, t.x.rows());
    ensure_gradients(*this);
    const executor_ref& executor = t.context.executor;
    dx.setZero();
    const row_counts most = most_rows(t);
    t.doutputs.reserve(most.of_bank, experts_.outputs());
    t.drows.reserve(most.of_bank, inputs());
    t.own_doutputs.reserve(most.of_task, experts_.outputs());
    t.doutputs.set_zero(t.joined.rows(), experts_.outputs());
    for (index_t q = 0; q < tasks(); ++q) {
      auto& own = t.tasks[as_size(q)];
      const auto columns = dy.middleCols(q * experts_.outputs(), experts_.outputs());
      for (auto* m : {&t.own_outputs, &t.own_doutputs}) m->resize(own.plan.rows(), experts_.outputs());
      t.joined.collect(q, t.outputs, t.own_outputs, executor);
      combine_backward(own.plan, columns, t.own_outputs.map(), t.own_doutputs.map(), own.dplan, executor);
      if constexpr (WeighsAfterExperts<Router>)
        if (Router& router = tasks_[as_size(q)].router(); router.needs_outputs(own.context, own.plan, own.router))
          router.backward_outputs(t.own_outputs.map(), own.context, own.plan, own.dplan, own.router,
                                  t.own_doutputs.map());
      t.joined.add(q, t.own_doutputs, t.doutputs, executor);
      for (index_t token = 0; has_bias_ && token < dy.rows(); ++token)
        if (!t.context.is_padding(token)) bias_.gradient()[as_size(q)] += columns.row(token).sum();
    }
    t.drows.resize(t.joined.rows(), inputs());
    experts_.backward(t.rows.map(), t.joined.by_expert(), t.doutputs.map(), t.drows.map(), t.experts, executor);
    for (index_t q = 0; q < tasks(); ++q) {
      auto& own = t.tasks[as_size(q)];
      if (t.joined.owns_rows(q)) {
        t.own_rows.resize(own.plan.rows(), inputs());
        t.joined.take(q, t.drows, t.own_rows, executor);
        dispatch_backward(own.plan, t.x.map(), t.own_rows.map(), dx, own.dplan, executor);
      }
      tasks_[as_size(q)].router().backward(t.x.map(), own.context, own.plan, own.dplan, own.router, dx);
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
  auto stored_as(const auto&... format) const {
    std::vector<Router> routers;
    for (const task_layer& task : tasks_) routers.push_back(task.router());
    auto bank = experts_.template stored_as<Storage>(format...);
    multi_gate_layer<Router, decltype(bank)> other(routers, std::move(bank), {.task_bias = has_bias_});
    other.task_bias() = bias_;
    return other;
  }

  /// Bytes that the experts of a workspace (or tape) will take for `rows` assignments a task.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t all = rows * tasks();
    return detail::bank_bytes(experts_, all, training) +
           (all + rows) * (inputs() + experts_.outputs()) * static_cast<index_t>(sizeof(scalar)) * (training ? 2 : 1);
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

  static context_type task_context(const context_type& context, index_t q) {
    context_type own = context.for_layer(q);
    own.task_id = q;
    return own;
  }

  /// Whether rows of the plan are tokens as they are.
  static joined_rows::part part_of(const typename Router::plan& plan) {
    joined_rows::part part{plan.by_expert()};
    if constexpr (RoutedPlan<typename Router::plan>)
      if (plan.routed().input_scales == nullptr) part.tokens = plan.routed().tokens;
    return part;
  }

  struct row_counts {
    index_t of_bank, of_task;
  };
  /// The most rows that the bank and one task can have with as many tokens.
  template <typename Memory>
  row_counts most_rows(const Memory& m) const {
    index_t shared = 0, own = 0, of_task = 0;
    for (const auto& task : m.tasks) {
      const index_t rows = task.plan.most_rows();
      (part_of(task.plan).tokens == nullptr ? own : shared) += rows;
      of_task = (std::max)(of_task, rows);
    }
    const index_t tokens = m.tasks.front().plan.tokens();
    return {own + (std::min)(shared, tokens * experts()), of_task};
  }

  template <typename Memory>
  void run(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, bool keep) const {
    const executor_ref& executor = context.executor;
    if (m.tasks.size() != tasks_.size()) m.tasks.resize(tasks_.size());
    for (index_t q = 0; q < tasks(); ++q) {
      auto& own = m.tasks[as_size(q)];
      tasks_[as_size(q)].router().route(x, task_context(context, q), own.plan, own.router);
    }
    const row_counts most = most_rows(m);
    m.joined.reserve(tasks(), x.rows(), experts(), most.of_task * tasks());
    m.tokens.reserve(ReadsContext<Bank> ? most.of_bank : 0);
    m.rows.reserve(most.of_bank, inputs());
    m.outputs.reserve(most.of_bank, experts_.outputs());
    m.own_rows.reserve(most.of_task, inputs());
    m.own_outputs.reserve(most.of_task, experts_.outputs());
    if constexpr (requires { experts_.prepare(m.experts, most.of_bank, keep); })
      experts_.prepare(m.experts, most.of_bank, keep);

    m.joined.join(tasks(), x.rows(), experts(), [&](index_t q) { return part_of(m.tasks[as_size(q)].plan); });
    m.rows.resize(m.joined.rows(), inputs());
    m.outputs.resize(m.joined.rows(), experts_.outputs());
    for (index_t q = 0; q < tasks(); ++q) {
      if (!m.joined.owns_rows(q)) continue;
      m.own_rows.resize(m.tasks[as_size(q)].plan.rows(), inputs());
      dispatch(m.tasks[as_size(q)].plan, x, m.own_rows.map(), executor);
      m.joined.spread(q, m.own_rows, m.rows, executor);
    }
    tell_experts(m, context);
    experts_.forward(m.rows.map(), m.joined.by_expert(), m.outputs.map(), m.experts, executor);
    index_t padding = 0;
    for (index_t token = 0; token < x.rows(); ++token) padding += context.is_padding(token);
    for (index_t q = 0; q < tasks(); ++q) {
      auto& own = m.tasks[as_size(q)];
      m.own_outputs.resize(own.plan.rows(), experts_.outputs());
      m.joined.collect(q, m.outputs, m.own_outputs, executor);
      if constexpr (WeighsAfterExperts<Router>) {
        const context_type given = task_context(context, q);
        const Router& router = tasks_[as_size(q)].router();
        if (router.needs_outputs(given, own.plan, own.router))
          router.weigh(m.own_outputs.map(), given, own.plan, own.router);
      }
      auto columns = y.middleCols(q * experts_.outputs(), experts_.outputs());
      combine(own.plan, m.own_outputs.map(), columns, executor);
      for (index_t token = 0; has_bias_ && token < y.rows(); ++token)
        if (!context.is_padding(token)) columns.row(token).array() += bias_.data()[q];
      own.statistics.count(own.plan, padding);
    }
  }

  /// What the call says of the bank's rows.
  template <typename Memory>
  void tell_experts(Memory& m, const context_type& context) const {
    if constexpr (!ReadsContext<Bank>) {
      return;
    } else if constexpr (RoutedPlan<typename Router::plan>) {
      m.tokens.resize(m.joined.rows());
      for (index_t q = 0; q < tasks(); ++q)
        for (index_t i = 0; const index_t row : m.joined.of(q))
          m.tokens[row] = m.tasks[as_size(q)].plan.routed().token(i++);
      detail::read_context(
          experts_, m.experts,
          routed_rows<scalar>{.by_expert = m.joined.by_expert(), .is_routed = true, .tokens = m.tokens.data()},
          context);
    } else {
      detail::read_context_of_mixtures(experts_, m.experts, m.joined.by_expert(), context);
    }
  }

  Bank experts_;
  std::vector<task_layer> tasks_;
  bool has_bias_;
  parameter<scalar> bias_;
};

}  // namespace sluice::inline SLUICE_ISA
