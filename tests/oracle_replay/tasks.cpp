// A gate a task over common experts (MMoE, MMoE-Ex), competition in its second form (CompeteSMoE), re-routing at test
// time (R2-T2).
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/multi_gate.hpp>
#include <sluice/loss/competition.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/over_training/compete.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/reroute.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- MMoE -------------------------------------------------------------------------------

/// The source's experts are recurrent or small dense networks; the files have relu(W x + b) or two maps, on the whole
/// token or on each of its steps. All of these are one map, a ReLU, and perhaps another map, of fixed structure: an
/// expert with two matrices that a mask keeps sparse would hide what is compared, so this one is written out.
///   out = second relu(first z + first_bias) + second_bias for each of the steps z of a token; without a second map the ReLU's output
template <typename Scalar>
class step_expert {
public:
  using scalar = Scalar;
  struct form {
    index_t steps, width, hidden, units;
    bool first_bias, second_map, step_bias;  ///< step_bias: one number a step, on all of its units
  };

  explicit step_expert(form f)
      : form_(f),
        first_({f.hidden, f.width}, parameter_role::weight),
        bias_({f.first_bias ? f.hidden : 0}, parameter_role::vector),
        second_({f.second_map ? f.units : 0, f.hidden}, parameter_role::weight),
        step_bias_({f.step_bias ? f.steps : 0}, parameter_role::vector) {}

  index_t inputs() const { return form_.steps * form_.width; }
  index_t outputs() const { return form_.steps * form_.units; }
  index_t saved_columns() const { return form_.steps * form_.hidden; }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar> saved) const {
    for (index_t s = 0; s < form_.steps; ++s) {
      auto a = saved.middleCols(s * form_.hidden, form_.hidden);
      a = x.middleCols(s * form_.width, form_.width) * first_.map().transpose();
      if (form_.first_bias) a.rowwise() += bias_.map().col(0).transpose();
      a = a.cwiseMax(Scalar(0));
      auto out = y.middleCols(s * form_.units, form_.units);
      if (form_.second_map)
        out = a * second_.map().transpose();
      else
        out = a;
      if (form_.step_bias) out.array() += step_bias_.data()[s];
    }
  }
  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) {
    for (index_t s = 0; s < form_.steps; ++s) {
      const auto a = saved.middleCols(s * form_.hidden, form_.hidden);
      const auto out = dy.middleCols(s * form_.units, form_.units);
      matrix<Scalar> da = out;
      if (form_.second_map) {
        da = out * second_.map();
        second_.gradient_map() += out.transpose() * a;
      }
      da.array() *= (a.array() > 0).template cast<Scalar>();
      if (form_.step_bias) step_bias_.gradient()[static_cast<std::size_t>(s)] += out.sum();
      if (form_.first_bias) bias_.gradient_map().col(0) += da.colwise().sum().transpose();
      first_.gradient_map() += da.transpose() * x.middleCols(s * form_.width, form_.width);
      dx.middleCols(s * form_.width, form_.width) = da * first_.map();
    }
  }

  parameter<Scalar>& first() { return first_; }
  parameter<Scalar>& bias() { return bias_; }
  parameter<Scalar>& second() { return second_; }
  parameter<Scalar>& step_bias() { return step_bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("first", self.first_);
    visit("bias", self.bias_);
    visit("second", self.second_);
    visit("step_bias", self.step_bias_);
  }

private:
  form form_;
  parameter<Scalar> first_, bias_, second_, step_bias_;
};

/// Tasks of the file stand one after another, ours side by side.
template <typename Scalar>
matrix<Scalar> side_by_side(const matrix<Scalar>& stacked, index_t tasks, index_t tokens) {
  const index_t width = stacked.size() / (tasks * tokens);
  matrix<Scalar> beside(tokens, tasks * width);
  for (index_t q = 0; q < tasks; ++q)
    for (index_t t = 0; t < tokens; ++t)
      for (index_t d = 0; d < width; ++d) beside(t, q * width + d) = stacked.data()[(q * tokens + t) * width + d];
  return beside;
}
template <typename Scalar>
matrix<Scalar> stacked(const matrix<Scalar>& beside, index_t tasks) {
  const index_t width = beside.cols() / tasks;
  matrix<Scalar> one(tasks * beside.rows(), width);
  for (index_t q = 0; q < tasks; ++q)
    one.middleRows(q * beside.rows(), beside.rows()) = beside.middleCols(q * width, width);
  return one;
}

template <typename Scalar>
using mmoe_layer = multi_gate_layer<dense_softmax_router<Scalar>, expert_bank<step_expert<Scalar>>>;

template <typename Scalar>
mmoe_layer<Scalar> make_mmoe(typename step_expert<Scalar>::form form, index_t tasks, index_t experts) {
  const step_expert<Scalar> expert(form);
  const linear_gate<Scalar> gate(expert.inputs(), experts, {.bias = true});
  return {std::vector(static_cast<std::size_t>(tasks), dense_softmax_router<Scalar>(gate)),
          expert_bank<step_expert<Scalar>>(experts, expert),
          {.task_bias = true}};
}

template <typename Scalar>
void bind_gates(bindings<Scalar>& b, mmoe_layer<Scalar>& layer, const std::string& prefix) {
  for (index_t q = 0; q < layer.tasks(); ++q) {
    auto& gate = layer.task(q).router().gate();
    b.bind(prefix + ".kernel", gate.weight(), q * gate.weight().size(), layout::transposed);
    b.bind(prefix + ".bias", gate.bias(), q * gate.bias().size());
  }
  b.bind("task_bias", layer.task_bias());
}

/// Forward and backward, and the weights of every task.
template <typename Scalar>
struct mmoe_run {
  typename mmoe_layer<Scalar>::tape tape;
  matrix<Scalar> y, dx;

  mmoe_run(mmoe_layer<Scalar>& layer, const matrix<Scalar>& x) : y(x.rows(), layer.outputs()), dx(x.rows(), x.cols()) {
    layer.forward(x, y, tape);
  }
  matrix<Scalar> weights() const {
    const index_t tokens = y.rows(), experts = tape.tasks.front().plan.experts();
    matrix<Scalar> all(static_cast<index_t>(tape.tasks.size()) * tokens, experts);
    for (std::size_t q = 0; q < tape.tasks.size(); ++q)
      all.middleRows(static_cast<index_t>(q) * tokens, tokens) = tape.tasks[q].plan.dense_weights();
    return all;
  }
};

/// Who is connected to whom, as the method means it.
template <typename Scalar>
void check_connections(oracle_case<Scalar>& c, index_t tasks, index_t experts) {
  if (!c.has("expected.connected")) return;
  const auto own = c.integers("router.exclusive_task");
  const bool exclusive = c.template setting<std::string>("type") == "exclusivity";
  std::vector<Scalar> connected;
  for (index_t q = 0; q < tasks; ++q)
    for (index_t e = 0; e < experts; ++e) {
      const index_t task = own[static_cast<std::size_t>(e)];
      connected.push_back(task < 0 || (task == q) == exclusive ? Scalar(1) : Scalar(0));
    }
  c.check("connected", std::span<const Scalar>(connected));
}

template <typename Scalar>
void mmoe_ex(oracle_case<Scalar>& c) {
  const auto tasks = c.template setting<index_t>("Q"), experts = c.template setting<index_t>("E");
  const auto units = c.template setting<index_t>("U"), width = c.template setting<index_t>("D");
  if (c.template setting<std::string>("activation") != "relu") throw unsupported("experts that are not ReLU");
  auto layer = make_mmoe<Scalar>({1, width, units, units, true, false, false}, tasks, experts);
  bindings<Scalar> bound;
  bind_gates(bound, layer, "router");
  for (index_t e = 0; e < experts; ++e) {
    auto& expert = layer.bank().expert(e);
    bound.bind("experts.weight", expert.first(), e * expert.first().size());
    bound.bind("experts.bias", expert.bias(), e * units);
  }
  bound.load(c);
  const matrix<Scalar> x = c.rows("x");
  mmoe_run<Scalar> run(layer, x);
  c.check("y", stacked(run.y, tasks));
  c.check("weights", run.weights());
  layer.backward(side_by_side(c.rows("grad_out"), tasks, x.rows()), run.dx, run.tape);
  c.check("grad.x", run.dx);
  bound.check_gradients(c, "grad");
  check_connections(c, tasks, experts);
}

/// Experts on every step of a sequence, gates on the whole of it: a token is a sequence.
template <typename Scalar>
void mmoe_sequence(oracle_case<Scalar>& c) {
  const auto tasks = c.template setting<index_t>("tasks"), experts = c.template setting<index_t>("E");
  const auto hidden = c.template setting<index_t>("H"), units = c.template setting<index_t>("units");
  const auto steps = c.template setting<index_t>("sequence"), width = c.template setting<index_t>("features");
  auto layer = make_mmoe<Scalar>({steps, width, hidden, units, false, true, true}, tasks, experts);
  bindings<Scalar> bound;
  bind_gates(bound, layer, "gate");
  for (index_t e = 0; e < experts; ++e) {
    auto& expert = layer.bank().expert(e);
    bound.bind("experts.w1", expert.first(), e * expert.first().size());
    bound.bind("experts.w2", expert.second(), e * expert.second().size());
    bound.bind("experts.bias", expert.step_bias(), e * steps);
  }
  bound.load(c);
  const auto numbers = c.numbers("x");
  const index_t batch = c.template setting<index_t>("batch");
  const matrix<Scalar> x = const_matrix_map<Scalar>(numbers.data(), batch, steps * width);
  mmoe_run<Scalar> run(layer, x);
  c.check("y", stacked(run.y, tasks));
  c.check("gates", run.weights());
  layer.backward(side_by_side(c.rows("grad_out"), tasks, batch), run.dx, run.tape);
  c.check("grad.x", run.dx);
  bound.check_gradients(c, "grad");
}

/// relu(out.weight (x kernel) + out.bias), one number: expert e writes it into its own column, so that the sum over
/// experts is the list of products that the towers of the source read.
template <typename Scalar>
class column_expert {
public:
  using scalar = Scalar;
  column_expert(index_t inputs, index_t hidden, index_t columns)
      : kernel_({inputs, hidden}, parameter_role::weight),
        weight_({hidden}, parameter_role::weight),
        bias_({1}, parameter_role::vector),
        columns_(columns) {}

  index_t inputs() const { return kernel_.rows(); }
  index_t outputs() const { return columns_; }
  index_t saved_columns() const { return kernel_.cols(); }
  void set_column(index_t column) { column_ = column; }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar> saved) const {
    saved = x * kernel_.map();
    y.setZero();
    y.col(column_) = ((saved * weight_.map().col(0)).array() + bias_.data()[0]).cwiseMax(Scalar(0));
  }
  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) {
    const matrix<Scalar> a = (saved * weight_.map().col(0)).array() + bias_.data()[0];
    const matrix<Scalar> da = (a.array() > 0).select(dy.col(column_), Scalar(0));
    bias_.gradient()[0] += da.sum();
    weight_.gradient_map() += saved.transpose() * da;
    kernel_.gradient_map() += x.transpose() * (da * weight_.map().transpose());
    dx = da * weight_.map().transpose() * kernel_.map().transpose();
  }

  parameter<Scalar>& kernel() { return kernel_; }
  parameter<Scalar>& weight() { return weight_; }
  parameter<Scalar>& bias() { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("kernel", self.kernel_);
    visit("weight", self.weight_);
    visit("bias", self.bias_);
  }

private:
  parameter<Scalar> kernel_, weight_, bias_;
  index_t columns_, column_ = 0;
};

template <typename Scalar>
void mmoe_tabular(oracle_case<Scalar>& c) {
  const auto tasks = c.template setting<index_t>("tasks"), experts = c.template setting<index_t>("E");
  const auto hidden = c.template setting<index_t>("H"), units = c.template setting<index_t>("units");
  const auto width = c.template setting<index_t>("features");
  using bank_type = expert_bank<column_expert<Scalar>>;
  const linear_gate<Scalar> gate(width, experts, {.bias = true});
  multi_gate_layer<dense_softmax_router<Scalar>, bank_type> layer(
      std::vector(static_cast<std::size_t>(tasks), dense_softmax_router<Scalar>(gate)),
      bank_type(experts, column_expert<Scalar>(width, hidden, experts)), {.task_bias = true});
  bindings<Scalar> bound;
  for (index_t q = 0; q < tasks; ++q) {
    auto& own = layer.task(q).router().gate();
    bound.bind("gate.kernel", own.weight(), q * own.weight().size(), layout::transposed);
    bound.bind("gate.bias", own.bias(), q * experts);
  }
  bound.bind("task_bias", layer.task_bias());
  for (index_t e = 0; e < experts; ++e) {
    auto& expert = layer.bank().expert(e);
    expert.set_column(e);
    bound.bind("experts.kernel", expert.kernel(), e * width * hidden);
    bound.bind("experts.out.weight", expert.weight(), e * hidden);
    bound.bind("experts.out.bias", expert.bias(), e);
  }
  bound.load(c);
  const matrix<Scalar> x = c.rows("x");
  typename decltype(layer)::tape tape;
  matrix<Scalar> products(x.rows(), layer.outputs()), dproducts(x.rows(), layer.outputs()), dx(x.rows(), width);
  layer.forward(x, products, tape);
  matrix<Scalar> gates(tasks * x.rows(), experts);
  for (index_t q = 0; q < tasks; ++q)
    gates.middleRows(q * x.rows(), x.rows()) = tape.tasks[static_cast<std::size_t>(q)].plan.dense_weights();
  c.check("gates", gates);

  // The towers: [E] -> units -> 1, linear, a task each.
  const auto matrix_of = [&](const char* name, index_t q, index_t rows, index_t cols) {
    const auto numbers = c.numbers(name);
    return matrix<Scalar>(const_matrix_map<Scalar>(numbers.data() + q * rows * cols, rows, cols));
  };
  const matrix<Scalar> dy = c.rows("grad_out");
  matrix<Scalar> y(tasks, x.rows());
  std::vector<Scalar> dtower, dtower_bias, dhead, dhead_bias;
  const auto append = [](std::vector<Scalar>& to, const matrix<Scalar>& m) {
    to.insert(to.end(), m.data(), m.data() + m.size());
  };
  for (index_t q = 0; q < tasks; ++q) {
    const matrix<Scalar> tower = matrix_of("tower.weight", q, units, experts),
                         head = matrix_of("head.weight", q, 1, units);
    const matrix<Scalar> own = products.middleCols(q * experts, experts);
    matrix<Scalar> inside = own * tower.transpose();
    inside.rowwise() += matrix_of("tower.bias", q, 1, units).row(0);
    y.row(q) = (inside * head.transpose()).transpose();
    y.row(q).array() += matrix_of("head.bias", q, 1, 1)(0, 0);
    const matrix<Scalar> dout = dy.row(q).transpose(), dinside = dout * head;
    append(dtower, dinside.transpose() * own);
    append(dtower_bias, dinside.colwise().sum());
    append(dhead, dout.transpose() * inside);
    append(dhead_bias, dout.colwise().sum());
    dproducts.middleCols(q * experts, experts) = dinside * tower;
  }
  c.check("y", y);
  c.check("grad.tower.weight", dtower);
  c.check("grad.tower.bias", dtower_bias);
  c.check("grad.head.weight", dhead);
  c.check("grad.head.bias", dhead_bias);
  layer.backward(dproducts, dx, tape);
  c.check("grad.x", dx);
  bound.check_gradients(c, "grad");
}

template <typename Scalar>
void mmoe(oracle_case<Scalar>& c) {
  const auto kind = c.template setting<std::string>("kind");
  if (kind == "sequence") return mmoe_sequence(c);
  if (kind == "tabular") return mmoe_tabular(c);
  throw unsupported("kind " + kind);
}

// ---- CompeteSMoE, second version --------------------------------------------------------

template <typename Scalar>
void competesmoe(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E"),
             k = c.template setting<index_t>("k");
  if (c.template setting<std::string>("activation") != "silu_glu") throw unsupported("experts that are not SwiGLU");
  const auto sequences = c.template setting<index_t>("B"), length = c.template setting<index_t>("N");
  std::vector<index_t> borders;
  for (index_t b = 0; b <= sequences; ++b) borders.push_back(b * length);
  routing_context<Scalar> context;
  context.training = true;
  context.groups = borders;
  const double hybrid = c.template setting<bool>("hybrid") ? c.template setting<double>("router_theta") : 0;

  const auto run = [&](const std::string& name, auto loss) {
    compete_router router{top_k_router<Scalar>{D, E, {.top_k = k, .constant_weight = true}}, {.frequency = 1}};
    moe_layer layer{std::move(router), expert_bank<swiglu<Scalar>>(E, D, c.template setting<index_t>("H")), loss};
    bindings<Scalar> bound;
    bind_gated(bound, layer.bank());
    bound.bind("router.weight", layer.router().base().gate().weight());
    bound.load(c);
    typename decltype(layer)::tape tape;
    const bool is_task = name.empty();
    const matrix<Scalar> dy = is_task ? c.rows("grad_out") : matrix<Scalar>::Zero(c.rows("x").rows(), D);
    run_backward(c, layer, tape, bound, context, dy, is_task ? "grad" : "grad_" + name);
    if (!is_task) return c.check(name, tape.loss());
    const auto& seen = tape.router.seen;
    c.check("responses", copy(seen.responses));
    c.check("target", copy(seen.target));
    c.check("gates", copy(seen.policy));
    c.check_integers("indices", {seen.winners.data(), static_cast<std::size_t>(seen.winners.size())});
    std::vector<Scalar> weights;
    const matrix<Scalar> dense = tape.plan.dense_weights();
    for (index_t t = 0; t < dense.rows(); ++t)
      for (index_t j = 0; j < k; ++j) weights.push_back(dense(t, seen.winners(t, j)));
    c.check("weights", weights);
  };
  run("", imitation_loss{.coefficient = 0});
  run("router_loss", imitation_loss{.coefficient = 1, .winners = hybrid});
  run("diversity_loss", diversity_loss{});
  run("balance_loss", contest_balance{});
}

// ---- R2-T2

template <typename Scalar>
void r2t2(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E"), classes = c.template setting<index_t>("classes");
  const matrix<Scalar> embeddings = c.rows("reference.embedding");
  const auto query = c.numbers("query.embedding"), outputs = c.numbers("reference.outputs");
  const auto labels = c.integers("reference.label");
  const auto near = nearest_references<Scalar>(embeddings, query, c.template setting<index_t>("neighbours"));
  c.check_integers("neighbours", near.reference);
  c.check("similarity", near.similarity);

  // The file's model: logits of a reference = sum over experts of weight times what they put out, and its
  // cross-entropy.
  std::vector<Scalar> path, gradient_at_first(static_cast<std::size_t>(E), 0);
  std::vector<Scalar> weights = c.numbers("weights");
  index_t evaluations = 0;
  const auto loss = [&](index_t reference, std::span<const Scalar> r, std::span<Scalar> dr) {
    const const_matrix_map<Scalar> out(outputs.data() + reference * E * classes, E, classes);
    if (evaluations % near.size() == 0 && evaluations > 0) path.insert(path.end(), r.begin(), r.end());
    Eigen::Matrix<Scalar, 1, Eigen::Dynamic> logits =
        Eigen::Map<const Eigen::Matrix<Scalar, 1, Eigen::Dynamic>>(r.data(), E) * out;
    const Scalar largest = logits.maxCoeff();
    const Scalar sum = (logits.array() - largest).exp().sum();
    const auto label = static_cast<index_t>(labels[static_cast<std::size_t>(reference)]);
    const Scalar value = std::log(sum) + largest - logits(label);
    logits = ((logits.array() - largest).exp() / sum).matrix();
    logits(label) -= 1;
    for (index_t e = 0; e < E; ++e) dr[static_cast<std::size_t>(e)] += out.row(e).dot(logits);
    if (evaluations < near.size())
      for (std::size_t e = 0; e < gradient_at_first.size(); ++e)
        gradient_at_first[e] += near.share(evaluations) * dr[e];
    ++evaluations;
    return value;
  };
  const descend_options how{.steps = c.template setting<index_t>("steps"),
                            .first_rate = c.template setting<double>("initial_lr"),
                            .last_rate = c.template setting<double>("final_lr")};
  const auto losses = descend_reroute<Scalar>(std::span<Scalar>(weights), near, loss, how);
  path.insert(path.end(), weights.begin(), weights.end());
  c.check("loss", losses);
  c.check("weights", path);
  c.check("grad_first", gradient_at_first);
  std::vector<Scalar> rates;
  const cosine_schedule rate{{.peak = how.first_rate, .floor = how.last_rate, .steps = how.steps}};
  for (index_t s = 0; s < how.steps; ++s) rates.push_back(static_cast<Scalar>(rate(s)));
  c.check("learning_rate", rates);
}

}  // namespace

std::vector<replayer> tasks() {
  return {{"mmoe_ex", mmoe_ex<float>, mmoe_ex<double>},
          {"mmoe", mmoe<float>, mmoe<double>},
          {"competesmoe", competesmoe<float>, competesmoe<double>},
          {"r2t2", r2t2<float>, r2t2<double>}};
}

}  // namespace oracle
