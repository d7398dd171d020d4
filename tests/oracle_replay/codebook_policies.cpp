// Quantisers by their policies: cvq_vae, vq_kmeans, ibq, optvq, vq_wae.
#include "binding.hpp"
#include "replays.hpp"

#include <sluice/codebook/assign/transport.hpp>
#include <sluice/codebook/codes/mapped.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/gradient/index_propagation.hpp>
#include <sluice/codebook/kmeans.hpp>
#include <sluice/codebook/loss/code_contrast.hpp>
#include <sluice/codebook/loss/code_entropy.hpp>
#include <sluice/codebook/loss/distance_cross_entropy.hpp>
#include <sluice/codebook/loss/wasserstein.hpp>
#include <sluice/codebook/repair/anchors.hpp>
#include <sluice/codebook/repair/expire_codes.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

namespace oracle {
namespace {

using namespace sluice;

/// A training step on x and its backward call.
template <typename Q>
struct training_step {
  using Scalar = typename Q::scalar;
  matrix<Scalar> y, dx;
  typename Q::tape tape;

  training_step(Q& q, const matrix<typename Q::scalar>& x, const matrix<typename Q::scalar>& dy,
                routing_context<typename Q::scalar> context = {})
      : y(x.rows(), q.outputs()), dx(x.rows(), x.cols()) {
    context.training = true;
    q.forward(x, y, tape, context);
    zero_gradients(q);
    q.backward(dy, dx, tape);
  }
};

template <typename Scalar>
std::span<const index_t> all_ids(const matrix_buffer<index_t>& ids) {
  return {ids.data(), as_size(ids.size())};
}

std::string at(const std::string& name, index_t step) {
  return step == 0 ? name : name + ".step" + std::to_string(step);
}

/// A number that a draw from these shares turns to this index: the middle of its part.
template <typename Shares>
double draw_of(const Shares& shares, index_t index) {
  double before = 0;
  for (index_t i = 0; i < index; ++i) before += shares(i);
  return (before + shares(index) / 2) / shares.sum();
}

// ---- cvq_vae ---------------------------------------------------------------------------------------------------------

template <typename Scalar, typename Metric>
void run_cvq(oracle_case<Scalar>& c) {
  const auto codes = c.template setting<index_t>("codes"), width = c.template setting<index_t>("D");
  const auto anchor = c.template setting<std::string>("anchor");
  const anchor_options options{.choice = anchor == "closest"      ? anchor_choice::closest
                                         : anchor == "probrandom" ? anchor_choice::sampled
                                                                  : throw unsupported("anchor " + anchor),
                               .decay = c.template setting<double>("decay"),
                               .first_batch_only = c.template setting<bool>("first_batch")};
  const auto make = [&](double losses) {
    vector_quantizer q{
        learned_codes<Scalar>{codes, width}, Metric{}, anchors<Scalar, Metric>{codes, width, options},
        commitment_loss{.encoder = losses * c.template setting<double>("beta"), .codebook = losses},
        code_contrast_loss<Metric>{.coefficient = c.template setting<bool>("contras_loss") ? losses : 0}};
    bindings<Scalar> b;
    b.bind("codebook", q.codebook().table());
    b.bind("embed_prob", q.template policy<anchors<Scalar, Metric>>().usage());
    b.load(c);
    return q;
  };
  const auto dy = c.rows("grad_out");
  auto q = make(1), without_losses = make(0);
  c.check("grad.x", training_step(without_losses, c.rows("x"), dy).dx);
  for (index_t s = 0; s < c.template setting<index_t>("steps"); ++s) {
    const matrix<Scalar> x = c.rows(at("x", s));
    routing_context<Scalar> context;
    std::vector<double> draws;
    if (c.has(at("anchor_indices", s))) {
      const auto chosen = c.integers(at("anchor_indices", s));
      const matrix<double> tokens = x.template cast<double>(),
                           table = q.codebook().table().to_matrix().template cast<double>();
      for (index_t k = 0; k < codes; ++k) {
        Eigen::VectorXd scores = tokens * table.row(k).transpose();
        if constexpr (std::is_same_v<Metric, cosine_similarity>)
          scores.array() /= tokens.rowwise().norm().array() * table.row(k).norm();
        else
          scores = (-(tokens.rowwise() - table.row(k)).rowwise().squaredNorm()).eval();
        draws.push_back(draw_of(Eigen::VectorXd((scores.array() - scores.maxCoeff()).exp()), chosen[as_size(k)]));
      }
      context.random.replay(anchors<Scalar, Metric>::site, draws);
    }
    training_step step(q, x, matrix<Scalar>::Zero(x.rows(), width), context);
    c.check(at("y", s), step.y);
    c.check_integers(at("indices", s), all_ids<Scalar>(step.tape.ids));
    c.check(at("loss", s), step.tape.loss());
    c.check(at("perplexity", s), static_cast<Scalar>(step.tape.usage.perplexity()));
    if (s == 0) {
      c.check("grad_loss.x", step.dx);
      c.check("grad_loss.codebook", q.codebook().table().gradient_matrix());
    }
    q.after_step(step.tape);
    c.check(at("codebook_after", s), q.codebook().table().to_matrix());
    c.check(at("embed_prob_after", s), q.template policy<anchors<Scalar, Metric>>().usage().to_matrix());
  }
}

template <typename Scalar>
void cvq_vae(oracle_case<Scalar>& c) {
  const auto distance = c.template setting<std::string>("distance");
  if (distance == "cos")
    run_cvq<Scalar, cosine_similarity>(c);
  else if (distance == "l2")
    run_cvq<Scalar, squared_distance>(c);
  else
    throw unsupported("distance " + distance);
}

// ---- vq_kmeans -------------------------------------------------------------------------------------------------------

template <typename Scalar>
void vq_kmeans(oracle_case<Scalar>& c) {
  if (c.template setting<bool>("cosine")) throw unsupported("cosine");
  const auto codes = c.template setting<index_t>("codes"), width = c.template setting<index_t>("D");
  const auto threshold = c.template setting<double>("threshold");
  // The first call begins with k-means; what it leaves in the moving averages are the counts of its last assignment.
  const matrix<Scalar> first = c.rows("x"), dy = c.rows("grad_out");
  const auto order = c.integers("permutation.init");
  matrix<Scalar> start(codes, width);
  for (index_t k = 0; k < codes; ++k) start.row(k) = first.row(order[as_size(k)]);
  kmeans<Scalar, keep_codes> clusters(codes, width,
                                      {.rounds = c.template setting<index_t>("kmeans_iters"), .until_settled = false});
  clusters.begin_at(start);
  clusters.fit(first);
  const matrix<Scalar> means = clusters.table();
  c.check("kmeans_means", means);
  const auto make = [&](double encoder) {
    vector_quantizer q{moving_average_codes<Scalar>{codes, width, {.decay = c.template setting<double>("decay")}},
                       commitment_loss{.encoder = encoder}, expire_codes{.threshold = threshold, .noise = 0}};
    const auto& counts = clusters.sums().counts;
    q.codebook().sizes().fill([&](index_t k) { return static_cast<Scalar>(counts[k]); });
    q.codebook().sums().fill([&](index_t i) { return means.data()[i] * static_cast<Scalar>(counts[i / width]); });
    q.codebook().table().assign(means);
    q.codebook().recompute();
    return q;
  };
  auto q = make(1), without_losses = make(0);
  c.check("grad.x", training_step(without_losses, first, dy).dx);
  for (index_t s = 0; s < c.template setting<index_t>("steps"); ++s) {
    // The j-th of the codes that expire takes the j-th token of the permutation.
    const auto tokens = c.integers(at("permutation.expire", s));
    const auto sizes = c.numbers("expected." + at("cluster_size_after", s));
    std::vector<double> draws;
    std::size_t expired = 0;
    for (const Scalar size : sizes) {
      const bool is_new = size == static_cast<Scalar>(threshold);
      draws.push_back((static_cast<double>(tokens[expired]) + 0.5) / static_cast<double>(tokens.size()));
      expired += is_new ? 1 : 0;
    }
    routing_context<Scalar> context;
    context.random.replay(expire_codes::site, draws);
    const matrix<Scalar> x = c.rows(at("x", s));
    training_step step(q, x, matrix<Scalar>::Zero(x.rows(), width), context);
    c.check(at("y", s), step.y);
    c.check_integers(at("indices", s), all_ids<Scalar>(step.tape.ids));
    c.check(at("commit_loss", s), step.tape.loss());
    c.check(at("grad_commit_loss.x", s), step.dx);
    q.after_step(step.tape);
    c.check(at("cluster_size_after", s), q.codebook().sizes().to_matrix());
    c.check(at("codebook_after", s), q.codebook().table().to_matrix());
    c.check(at("embed_avg_after", s), q.codebook().sums().to_matrix());
  }
}

// ---- ibq -------------------------------------------------------------------------------------------------------------

template <typename Scalar>
void ibq(oracle_case<Scalar>& c) {
  const auto codes = c.template setting<index_t>("codes"), width = c.template setting<index_t>("D");
  const auto x = c.rows("x"), dy = c.rows("grad_out");
  const matrix<Scalar> none = matrix<Scalar>::Zero(x.rows(), width);
  const double temperature = c.template setting<double>("entropy_temperature", 1.0);
  const auto run = [&](const std::string& name, const matrix<Scalar>& cotangent, double quant,
                       code_entropy_loss entropy) {
    vector_quantizer q{
        learned_codes<Scalar>{codes, width}, inner_product{}, index_propagation{},
        commitment_loss{.encoder = quant, .codebook = quant * c.template setting<double>("beta"), .surrogate = quant},
        entropy};
    bindings<Scalar> b;
    b.bind("codebook", q.codebook().table());
    b.load(c);
    training_step step(q, x, cotangent);
    if (name == "quant_loss") c.check(name, step.tape.loss());
    const std::string prefix = name.empty() ? "grad" : "grad_" + name;
    c.check(prefix + ".x", step.dx);
    c.check(prefix + ".codebook", q.codebook().table().gradient_matrix());
    if (name.empty()) {
      c.check("y", step.y);
      c.check_integers("indices", all_ids<Scalar>(step.tape.ids));
    }
    return step.tape.loss();
  };
  const auto entropy = [&](double of_sample, double of_batch) {
    return code_entropy_loss{.sample = of_sample, .batch_weight = of_batch, .temperature = temperature};
  };
  run("", dy, 0, entropy(0, 0));
  run("quant_loss", none, 1, entropy(0, 0));
  if (c.template setting<bool>("entropy")) {
    c.check("sample_entropy", run("-", none, 0, entropy(1, 0)));
    c.check("avg_entropy", -run("-", none, 0, entropy(0, 1)));
    c.check("entropy_loss",
            run("entropy_loss", none, 0,
                entropy(c.template setting<double>("sample_weight"), c.template setting<double>("batch_weight"))));
  }
  const auto table = c.rows("codebook");
  code_logits<Scalar> logits;
  logits.set_products({x.data(), x.rows(), x.cols()}, {table.data(), table.rows(), table.cols()});
  matrix<Scalar> all(x.rows(), codes);
  logits.by_tokens({}, [&](index_t t, index_t m, index_t first, index_t n, const Scalar* tile) {
    for (index_t i = 0; i < m; ++i)
      for (index_t j = 0; j < n; ++j) all(t + i, first + j) = tile[i * logits.tile_codes + j];
  });
  c.check("logits", all);
}

// ---- optvq -----------------------------------------------------------------------------------------------------------

template <typename Scalar, typename Codes, typename Loss>
void run_optvq(oracle_case<Scalar>& c, const Codes& codebook, Loss loss, Loss no_loss) {
  const auto mode = c.template setting<std::string>("normalize_mode");
  const transport_assignment assignment{.epsilon = c.template setting<double>("epsilon"),
                                        .rounds = c.template setting<index_t>("n_iters"),
                                        .cost = mode == "all"   ? transport_cost::all
                                                : mode == "dim" ? transport_cost::width
                                                                : throw unsupported("normalize_mode " + mode),
                                        .draws = c.template setting<bool>("use_prob")};
  // Heads are tokens of their own: they share codebook and plan.
  const auto pieces = [&](const std::string& name) {
    const matrix<Scalar> m = c.rows(name);
    return matrix<Scalar>(Eigen::Map<const matrix<Scalar>>(m.data(), m.size() / codebook.inputs(), codebook.inputs()));
  };
  const matrix<Scalar> x = pieces("x");
  routing_context<Scalar> context;
  std::vector<double> draws;
  if (c.has("uniform")) draws = c.file().template read_vector<double>("uniform");
  context.random.replay(transport_assignment::site, draws);
  const auto run = [&](const std::string& prefix, Loss with, const matrix<Scalar>& dy) {
    vector_quantizer q{codebook, assignment, with};
    bindings<Scalar> b;
    if constexpr (requires { q.codebook().basis(); }) {
      b.bind("embedding", q.codebook().basis());
      b.bind("proj.weight", q.codebook().weight());
      b.bind("proj.bias", q.codebook().bias());
    } else {
      b.bind("embedding", q.codebook().table());
    }
    b.load(c);
    training_step step(q, x, dy, context);
    c.check("y", step.y);
    c.check_integers("indices", all_ids<Scalar>(step.tape.ids));
    c.check(prefix + ".x", step.dx);
    b.check_gradients(c, prefix);
    if (prefix == "grad_loss") c.check("loss", step.tape.loss());
    matrix<Scalar> table(q.codes(), q.inputs());
    if constexpr (requires { q.codebook().fold(); })
      table = q.codebook().fold().table().to_matrix();
    else
      table = q.codebook().table().to_matrix();
    c.check("codebook", table);
    transport_assignment::memory<Scalar> memory;
    assignment.couple<Scalar>({x.data(), x.rows(), x.cols()}, {table.data(), table.rows(), table.cols()}, memory, {});
    matrix<Scalar> plan(x.rows(), table.rows());
    transport_assignment::plan<Scalar>(memory, plan);
    c.check("plan", plan);
  };
  run("grad", no_loss, pieces("grad_out"));
  run("grad_loss", loss, matrix<Scalar>::Zero(x.rows(), x.cols()));
}

template <typename Scalar, typename Codes>
void optvq_with(oracle_case<Scalar>& c, const Codes& codebook) {
  const auto loss = c.template setting<std::string>("loss");
  if (loss == "ce")
    run_optvq(c, codebook, distance_cross_entropy{}, distance_cross_entropy{.coefficient = 0});
  else if (loss == "l2")
    run_optvq(c, codebook, commitment_loss{.encoder = 1, .codebook = c.template setting<double>("beta")},
              commitment_loss{.encoder = 0, .codebook = 0});
  else
    throw unsupported("loss " + loss);
}

template <typename Scalar>
void optvq(oracle_case<Scalar>& c) {
  const auto codes = c.template setting<index_t>("codes");
  const index_t width = c.template setting<index_t>("D") / c.template setting<index_t>("heads");
  if (c.template setting<bool>("use_proj"))
    optvq_with(c, mapped_codes<Scalar>{codes, width, {.bias = true, .learned_basis = true}});
  else
    optvq_with(c, learned_codes<Scalar>{codes, width});
}

// ---- vq_wae ----------------------------------------------------------------------------------------------------------

template <typename Scalar>
void vq_wae(oracle_case<Scalar>& c) {
  const auto codes = c.template setting<index_t>("codes"), width = c.template setting<index_t>("D");
  const index_t positions = c.template setting<index_t>("H") * c.template setting<index_t>("W");
  const bool global = c.template setting<bool>("global_optimization");
  const auto x = c.rows("x"), dy = c.rows("grad_out");
  const auto run = [&](const std::string& prefix, double losses, const matrix<Scalar>& cotangent) {
    using loss_type = wasserstein_loss<Scalar>;
    vector_quantizer q{learned_codes<Scalar>{codes, width},
                       loss_type{codes,
                                 {.problems = global ? 1 : positions,
                                  .beta = losses * c.template setting<double>("beta"),
                                  .kl = losses * c.template setting<double>("kl_regularization"),
                                  .learned_weights = !c.template setting<bool>("fixed_weight")}}};
    bindings<Scalar> b;
    b.bind("codebook", q.codebook().table());
    b.bind("codebook_weight", q.template policy<loss_type>().weights());
    b.load(c);
    training_step step(q, x, cotangent);
    c.check(prefix + ".x", step.dx);
    b.check_gradients(c, prefix);
    if (prefix == "grad") return;
    c.check("y", step.y);
    c.check_integers("indices", all_ids<Scalar>(step.tape.ids));
    c.check("perplexity", static_cast<Scalar>(step.tape.usage.perplexity()));
    c.check("loss", step.tape.loss());
    // The file's plans order tokens by position and then by item; ours come as they are in the batch.
    std::vector<Scalar> plan;
    for (const auto& p : std::get<0>(step.tape.memories).problems) {
      const auto& flow = p.transport.flow();
      const index_t n = flow.cols(), own = global ? positions : 1;
      for (index_t k = 0; k < codes; ++k)
        for (index_t position = 0; position < own; ++position)
          for (index_t item = 0; item < n / own; ++item)
            plan.push_back(static_cast<Scalar>(flow(k, item * own + position) / static_cast<double>(n)));
    }
    c.check("plan", std::span<const Scalar>(plan));
  };
  run("grad", 0, dy);
  run("grad_loss", 1, matrix<Scalar>::Zero(x.rows(), x.cols()));
}

}  // namespace

std::vector<replayer> codebook_policies() {
  return {{"cvq_vae", cvq_vae<float>, cvq_vae<double>},
          {"ibq", ibq<float>, ibq<double>},
          {"optvq", optvq<float>, optvq<double>},
          {"vq_wae", vq_wae<float>, vq_wae<double>},
          {"vq_kmeans", vq_kmeans<float>, vq_kmeans<double>}};
}

}  // namespace oracle
