// Experts of growing width that take their shares of the tokens: MoNE's router, and its block with attention.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/nested_bank.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/router/experts_choose/expert_preferred.hpp>
#include <sluice/router/residual_weights.hpp>

namespace oracle {
namespace {

using namespace sluice;

template <typename Scalar>
using mone = residual_weights_router<expert_preferred_router<Scalar>>;

template <typename Scalar>
mone<Scalar> make_mone(const oracle_case<Scalar>& c, std::vector<double> shares) {
  const linear_gate<Scalar> gate(c.template setting<index_t>("D"), static_cast<index_t>(shares.size()));
  return mone<Scalar>(expert_preferred_router<Scalar>(gate, std::move(shares)));
}

/// The expert of every token, and the weight that the rule gave it.
template <typename Scalar>
void check_mone_plan(oracle_case<Scalar>& c, const typename mone<Scalar>::tape& tape, const std::string& experts) {
  c.check("gates", copy(tape.scores));
  c.check_integers(experts, tape.choices.expert.span());
  c.check("weights", tape.choices.weight.span());
}

// ---- the router alone ------------------------------------------------------------------------------------------------

template <typename Scalar>
void shares_of_capacity(oracle_case<Scalar>& c) {
  const auto experts = c.integers("num_experts");
  const auto numbers = [&](const char* name) { return c.file().template read_vector<double>(name); };
  const auto effective = numbers("effective_capacity"), delta = numbers("delta"), beta = numbers("beta");
  const index_t columns = c.axis("expected.capacity", 1);
  std::vector<Scalar> shares;
  for (std::size_t row = 0; row < experts.size(); ++row) {
    const auto own = nested_shares(experts[row], effective[row], {.delta = delta[row], .beta = beta[row]});
    for (index_t i = 0; i < columns; ++i)
      shares.push_back(i < experts[row] ? static_cast<Scalar>(own[static_cast<std::size_t>(i)]) : Scalar(0));
  }
  c.check("capacity", shares, 1e-5);  // the advice for a solved optimum
}

template <typename Scalar>
void mone_router(oracle_case<Scalar>& c) {
  if (c.has("expected.capacity")) return shares_of_capacity(c);
  auto router = make_mone(c, c.file().template read_vector<double>("capacity_fraction"));
  bindings<Scalar> bound;
  bound.bind("router.weight", router.inner().gate().weight());
  bound.bind("alpha", router.alpha());
  bound.load(c);
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.groups = groups;
  const matrix<Scalar> x = c.rows("x"), branch = c.rows("branch"), dy = c.rows("grad_out");
  sparse_plan<Scalar> plan;
  typename mone<Scalar>::tape tape;
  router.route(x, context, plan, tape);
  check_mone_plan(c, tape, "indices");
  std::vector<index_t> budget;
  for (const double share : router.inner().rule().shares())
    budget.push_back(static_cast<index_t>(share * c.template setting<double>("N")));
  c.check_integers("budget", budget);

  matrix<Scalar> y = x, dbranch(x.rows(), x.cols()), dx = dy;
  sparse_plan_gradient<Scalar> dplan;
  dplan.weight.resize(plan.size());
  for (index_t i = 0; i < plan.size(); ++i) {
    const index_t t = plan.token(i);
    y.row(t) += plan.weight(i) * branch.row(t);
    dbranch.row(t) = plan.weight(i) * dy.row(t);
    dplan.weight[i] = dy.row(t).dot(branch.row(t));
  }
  zero_gradients(router);
  ensure_gradients(router);
  tape.dseen.zero_like(tape.seen);
  router.backward(x, context, plan, dplan, tape, dx);
  c.check("y", y);
  c.check("grad.x", dx);
  c.check("grad.branch", dbranch);
  bound.check_gradients(c, "grad");
}

// ---- the block -------------------------------------------------------------------------------------------------------

/// Attention of whole sequences, heads beside each other in the columns of q, k and v [T,D].
template <typename Scalar>
struct attention {
  index_t sequence, heads;
  matrix<Scalar> qkv;                  ///< [T,3D]
  std::vector<matrix<Scalar>> shares;  ///< of every sequence and head

  auto part(matrix<Scalar>& m, index_t which, index_t s, index_t h) const {
    const index_t D = qkv.cols() / 3, width = D / heads;
    return m.block(s * sequence, which * D + h * width, sequence, width);
  }
  Scalar scale() const { return 1 / std::sqrt(static_cast<Scalar>(qkv.cols() / 3 / heads)); }

  matrix<Scalar> forward() {
    const index_t D = qkv.cols() / 3;
    matrix<Scalar> out(qkv.rows(), D);
    for (index_t s = 0; s < qkv.rows() / sequence; ++s)
      for (index_t h = 0; h < heads; ++h) {
        matrix<Scalar> a = scale() * part(qkv, 0, s, h) * part(qkv, 1, s, h).transpose();
        for (index_t r = 0; r < sequence; ++r) kernel::softmax(&a(r, 0), &a(r, 0), sequence);
        out.block(s * sequence, h * (D / heads), sequence, D / heads) = a * part(qkv, 2, s, h);
        shares.push_back(std::move(a));
      }
    return out;
  }
  /// The gradient of qkv.
  matrix<Scalar> backward(const matrix<Scalar>& dout) {
    const index_t width = qkv.cols() / 3 / heads;
    matrix<Scalar> dqkv(qkv.rows(), qkv.cols());
    for (index_t s = 0; s < qkv.rows() / sequence; ++s)
      for (index_t h = 0; h < heads; ++h) {
        const matrix<Scalar>& a = shares[static_cast<std::size_t>(s * heads + h)];
        const matrix<Scalar> d = dout.block(s * sequence, h * width, sequence, width);
        matrix<Scalar> da = d * part(qkv, 2, s, h).transpose();
        for (index_t r = 0; r < sequence; ++r) {
          const Scalar inner = a.row(r).dot(da.row(r));
          da.row(r) = scale() * a.row(r).array() * (da.row(r).array() - inner);
        }
        part(dqkv, 0, s, h) = da * part(qkv, 1, s, h);
        part(dqkv, 1, s, h) = da.transpose() * part(qkv, 0, s, h);
        part(dqkv, 2, s, h) = a.transpose() * d;
      }
    return dqkv;
  }
};

template <typename Scalar>
void mone_block(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto H = c.template setting<index_t>("H");
  auto router = make_mone(c, c.config().at("capacity").template get<std::vector<double>>());
  nested_bank<Scalar, gelu> mlp(E, D, H,
                                {.widths = c.config().at("widths").template get<std::vector<index_t>>(), .bias = true});
  layer_norm<Scalar> norm1(D, {.bias = true}), norm2(D, {.bias = true});
  parameter<Scalar> qkv({3 * D, D}, parameter_role::weight), proj({D, D}, parameter_role::weight);
  parameter<Scalar> proj_bias({D}, parameter_role::vector);
  bindings<Scalar> bound;
  bound.bind("router.weight", router.inner().gate().weight());
  bound.bind("alpha", router.alpha());
  bound.bind("fc1.weight", mlp.up());
  bound.bind("fc1.bias", mlp.up_bias());
  bound.bind("fc2.weight", mlp.down());
  bound.bind("fc2.bias", mlp.down_bias());
  bound.bind("norm1.weight", norm1.gain());
  bound.bind("norm1.bias", norm1.bias());
  bound.bind("norm2.weight", norm2.gain());
  bound.bind("norm2.bias", norm2.bias());
  bound.bind("qkv.weight", qkv);
  bound.bind("proj.weight", proj);
  bound.bind("proj.bias", proj_bias);
  bound.load(c);
  for (auto* p : {&qkv, &proj, &proj_bias}) p->ensure_gradient();
  ensure_gradients(router), ensure_gradients(mlp), ensure_gradients(norm1), ensure_gradients(norm2);

  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.groups = groups;
  const executor_ref& executor = context.executor;
  const matrix<Scalar> x = c.rows("x"), dy = c.rows("grad_out");
  const index_t T = x.rows();
  sparse_plan<Scalar> plan;
  typename mone<Scalar>::tape routed;
  router.route(x, context, plan, routed);
  check_mone_plan(c, routed, "assignment");
  const auto width = [&](index_t t) { return mlp.width(plan.expert(plan.of_token(t)[0])); };

  // xa = x + out-map(attention(in-map(norm1 x))), each token with the channels of its expert
  typename layer_norm<Scalar>::tape norm1_tape, norm2_tape;
  matrix<Scalar> n1(T, D), n2(T, D), xa = x;
  norm1.forward(x, n1, norm1_tape, executor);
  attention<Scalar> attend{
      c.template setting<index_t>("N"), c.template setting<index_t>("heads"), matrix<Scalar>(T, 3 * D), {}};
  for (index_t t = 0; t < T; ++t)
    attend.qkv.row(t) = n1.row(t).head(width(t)) * qkv.map().leftCols(width(t)).transpose();
  const matrix<Scalar> mixed = attend.forward();
  for (index_t t = 0; t < T; ++t) {
    const index_t d = width(t);
    xa.row(t).head(d) += mixed.row(t) * proj.map().topRows(d).transpose() + proj_bias.map().col(0).head(d).transpose();
  }
  // y = xa + (1 + alpha p) mlp(norm2 xa)
  norm2.forward(xa, n2, norm2_tape, executor);
  matrix<Scalar> rows(plan.rows(), D), outputs(plan.rows(), D), y(T, D);
  typename nested_bank<Scalar, gelu>::tape experts;
  dispatch(plan, n2, rows, executor);
  mlp.forward(rows, plan.by_expert(), outputs, experts, executor);
  combine(plan, outputs, y, executor);
  c.check("y", matrix<Scalar>(y + xa));

  matrix<Scalar> doutputs(plan.rows(), D), drows(plan.rows(), D), dn2 = matrix<Scalar>::Zero(T, D), dxa = dy;
  sparse_plan_gradient<Scalar> dplan;
  combine_backward(plan, dy, outputs, doutputs, dplan, executor);
  mlp.backward(rows, plan.by_expert(), doutputs, drows, experts, executor);
  dispatch_backward(plan, n2, drows, dn2, dplan, executor);
  norm2.backward(xa, dn2, norm2_tape, dxa, executor, 0);
  matrix<Scalar> dmixed = matrix<Scalar>::Zero(T, D), dn1 = dmixed, dx = dxa;
  for (index_t t = 0; t < T; ++t) {
    const index_t d = width(t);
    const auto own = dxa.row(t).head(d);
    dmixed.row(t) = own * proj.map().topRows(d);
    proj.gradient_map().topRows(d) += own.transpose() * mixed.row(t);
    for (index_t i = 0; i < d; ++i) proj_bias.gradient()[static_cast<std::size_t>(i)] += own[i];
  }
  const matrix<Scalar> dqkv = attend.backward(dmixed);
  for (index_t t = 0; t < T; ++t) {
    const index_t d = width(t);
    dn1.row(t).head(d) = dqkv.row(t) * qkv.map().leftCols(d);
    qkv.gradient_map().leftCols(d) += dqkv.row(t).transpose() * n1.row(t).head(d);
  }
  norm1.backward(x, dn1, norm1_tape, dx, executor, 0);
  routed.dseen.zero_like(routed.seen);
  router.backward(x, context, plan, dplan, routed, dx);
  c.check("grad.x", dx);
  bound.check_gradients(c, "grad");
}

}  // namespace

std::vector<replayer> nested_experts() {
  return {{"mone_router", mone_router<float>, mone_router<double>}, {"mone", mone_block<float>, mone_block<double>}};
}

}  // namespace oracle
