// Vector quantisers of one codebook: vq, simvq, rotation_trick, vq_taming; MAUVE.
#include "binding.hpp"
#include "quantizer_step.hpp"
#include "replays.hpp"

#include <sluice/codebook/codes/mapped.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/divergence_frontier.hpp>
#include <sluice/codebook/gradient/rotation.hpp>
#include <sluice/codebook/structure/unit_rows.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

namespace oracle {
namespace {

using namespace sluice;

template <typename Scalar>
std::vector<index_t> first_column(const matrix_buffer<index_t>& ids) {
  std::vector<index_t> column;
  for (index_t t = 0; t < ids.rows(); ++t) column.push_back(ids(t, 0));
  return column;
}

std::string at_step(const std::string& name, index_t step) {
  return step == 0 ? name : name + ".step" + std::to_string(step);
}

// ---- vq --------------------------------------------------------------------------------------------------------------

/// make(encoder weight) is the quantiser; codebook(q) its moving averages.
template <typename Scalar, typename Make, typename CodebookOf>
void replay_moving_averages(oracle_case<Scalar>& c, Make&& make, CodebookOf&& codebook_of) {
  auto q = make(c.template setting<double>("commitment_weight"));
  using quantizer = decltype(q);
  const auto load = [&](quantizer& target) {
    auto& codes = codebook_of(target);
    bindings<Scalar> b;
    b.bind("codebook", codes.table());
    b.bind("cluster_size", codes.sizes());
    b.bind("embed_avg", codes.sums());
    b.load(c);
  };
  load(q);
  const auto x = c.rows("x"), dy = c.rows("grad_out");
  if (!c.template setting<bool>("train")) {
    typename quantizer::workspace ws;
    matrix<Scalar> y(x.rows(), x.cols());
    matrix<index_t> ids(x.rows(), 1);
    q.forward(x, y, ws);
    q.encode(x, ids, ws);
    c.check("y", y);
    c.check_integers("indices", {ids.data(), as_size(ids.size())});
    return;
  }
  auto without_loss = make(0);
  load(without_loss);
  quantizer_step<quantizer> plain(without_loss, x);
  c.check("grad.x", plain.backward(without_loss, dy));

  const auto steps = c.template setting<index_t>("steps");
  for (index_t s = 0; s < steps; ++s) {
    quantizer_step<quantizer> step(q, c.rows(at_step("x", s)));
    c.check(at_step("y", s), step.y);
    c.check_integers(at_step("indices", s), first_column<Scalar>(step.tape.ids));
    c.check(at_step("commit_loss", s), step.tape.loss());
    if (s == 0) c.check("grad_commit_loss.x", step.backward_of_losses(q));
    q.after_step(step.tape);
    auto& codes = codebook_of(q);
    c.check(at_step("cluster_size_after", s), codes.sizes().to_matrix());
    c.check(at_step("codebook_after", s), codes.table().to_matrix());
    c.check(at_step("embed_avg_after", s), codes.sums().to_matrix());
  }
}

template <typename Scalar>
void replay_vq(oracle_case<Scalar>& c) {
  const bool cosine = c.template setting<bool>("cosine");
  const auto codes = [&] {
    return moving_average_codes<Scalar>(c.axis("codebook", 0), c.axis("codebook", 1),
                                        {.decay = c.template setting<double>("decay"),
                                         .epsilon = c.template setting<double>("eps"),
                                         .unit_length = cosine});
  };
  const auto with_gradient = [&](auto gradient) {
    const auto plain = [&](double weight) { return vector_quantizer{codes(), gradient, commitment_loss{.encoder = weight}}; };
    const auto unit = [&](double weight) {
      return unit_rows{vector_quantizer{codes(), gradient, cosine_similarity{}, commitment_loss{.encoder = weight}}};
    };
    if (cosine)
      replay_moving_averages(c, unit, [](auto& q) -> auto& { return q.quantizer().codebook(); });
    else
      replay_moving_averages(c, plain, [](auto& q) -> auto& { return q.codebook(); });
  };
  if (c.template setting<bool>("rotation_trick"))
    with_gradient(rotation{});
  else
    with_gradient(straight_through{});
}

// ---- simvq -----------------------------------------------------------------------------------------------------------

template <typename Scalar>
void replay_simvq(oracle_case<Scalar>& c) {
  const auto weight = c.template setting<double>("commitment_weight"), encoder = c.template setting<double>("input_commit_weight");
  const auto with_gradient = [&](auto gradient) {
    const auto make = [&](double loss) {
      vector_quantizer q{mapped_codes<Scalar>(c.axis("frozen_codebook", 0), c.axis("transform.weight", 0), c.axis("transform.weight", 1)),
                         gradient, commitment_loss{.encoder = loss * weight * encoder, .codebook = loss * weight}};
      bindings<Scalar> b;
      b.bind("frozen_codebook", q.codebook().basis());
      b.bind("transform.weight", q.codebook().weight());
      b.load(c);
      return q;
    };
    const auto x = c.rows("x"), dy = c.rows("grad_out");
    auto q = make(1), without_loss = make(0);
    quantizer_step<decltype(q)> step(q, x), plain(without_loss, x);
    c.check("y", step.y);
    c.check_integers("indices", first_column<Scalar>(step.tape.ids));
    c.check("codebook", q.codebook().fold().table().to_matrix());
    c.check("commit_loss", step.tape.loss());
    c.check("grad.x", plain.backward(without_loss, dy));
    c.check("grad.transform.weight", without_loss.codebook().weight().gradient_matrix());
    c.check("grad_commit_loss.x", step.backward_of_losses(q));
    c.check("grad_commit_loss.transform.weight", q.codebook().weight().gradient_matrix());
  };
  if (c.template setting<bool>("rotation_trick"))
    with_gradient(rotation{});
  else
    with_gradient(straight_through{});
}

// ---- rotation_trick --------------------------------------------------------------------------------------------------

/// Codes that the file names, in the place of the nearest.
struct given_codes {
  using role = assignment_role;
  std::vector<index_t> ids;

  template <typename Scalar, typename Memory>
  void assign(const quantized_batch<Scalar>&, tokens_out<index_t> out, Memory&) const {
    for (index_t t = 0; t < out.rows(); ++t) out(t, 0) = ids[as_size(t)];
  }
};

/// The authors' output, lambda R x: their code but for a millionth, where the library's is the code itself.
template <typename Scalar>
matrix<Scalar> turned_tokens(const matrix<Scalar>& x, const matrix<Scalar>& q) {
  matrix<Scalar> y(x.rows(), x.cols());
  for (index_t t = 0; t < x.rows(); ++t) {
    const Scalar guard = Scalar(1e-6), length = x.row(t).norm() + guard;
    const Eigen::Matrix<Scalar, 1, Eigen::Dynamic> u = x.row(t) / length, v = q.row(t) / (q.row(t).norm() + guard);
    const Eigen::Matrix<Scalar, 1, Eigen::Dynamic> w = (u + v).normalized();
    y.row(t) = q.row(t).norm() / length * (x.row(t) - 2 * x.row(t).dot(w) * w + 2 * x.row(t).dot(u) * v);
  }
  return y;
}

template <typename Scalar>
void replay_rotation(oracle_case<Scalar>& c) {
  const auto x = c.rows("x"), dy = c.rows("grad_out");
  const commitment_loss no_loss{.encoder = 0, .codebook = 0};
  const bool cosine = c.template setting<bool>("cosine");
  const auto check = [&](auto q, auto&& codebook_of) {
    bindings<Scalar> b;
    b.bind("codebook", codebook_of(q).table());
    b.load(c);
    quantizer_step<decltype(q)> step(q, x);
    c.check_integers("indices", first_column<Scalar>(step.tape.ids));
    c.check("q", step.y);
    if (cosine) {  // the last normalisation starts from the authors' output, a millionth off: the strict bounds, in double too
      c.check("y", step.y, 2e-5, 1e-6);
      const auto gradient = c.numbers("expected.grad.x");
      c.check("grad.x", step.backward(q, dy), 5e-5, 2e-6 + 5e-6 * Eigen::Map<const matrix<Scalar>>(gradient.data(), 1, dy.size()).cwiseAbs().maxCoeff());
    } else {
      c.check("y", turned_tokens(x, step.y));
      c.check("grad.x", step.backward(q, dy));
    }
  };
  learned_codes<Scalar> codes(c.axis("codebook", 0), c.axis("codebook", 1));
  const auto own = [](auto& q) -> auto& { return q.codebook(); };
  if (c.has("indices"))
    check(vector_quantizer{codes, rotation{.adds = true}, no_loss, given_codes{c.integers("indices")}}, own);
  else if (cosine)
    check(unit_rows{vector_quantizer{codes, rotation{.adds = true}, no_loss, cosine_similarity{}}, {.outputs = true}},
          [](auto& q) -> auto& { return q.quantizer().codebook(); });
  else
    check(vector_quantizer{codes, rotation{.adds = true}, no_loss}, own);
}

// ---- vq_taming -------------------------------------------------------------------------------------------------------

template <typename Scalar>
void replay_taming(oracle_case<Scalar>& c) {
  const auto beta = c.template setting<double>("beta");
  const bool legacy = c.template setting<bool>("legacy");
  const auto x = c.rows("x"), dy = c.rows("grad_out");
  const auto with_metric = [&](auto metric) {
    const auto make = [&](double loss) {
      vector_quantizer q{learned_codes<Scalar>(c.axis("codebook", 0), c.axis("codebook", 1)), metric,
                         commitment_loss{.encoder = loss * (legacy ? 1 : beta), .codebook = loss * (legacy ? beta : 1)}};
      bindings<Scalar> b;
      b.bind("codebook", q.codebook().table());
      b.load(c);
      return q;
    };
    auto q = make(1), without_loss = make(0);
    quantizer_step<decltype(q)> step(q, x), plain(without_loss, x);
    c.check("y", step.y);
    c.check_integers("indices", first_column<Scalar>(step.tape.ids));
    c.check("loss", step.tape.loss());
    c.check("grad.x", plain.backward(without_loss, dy));
    c.check("grad_loss.x", step.backward_of_losses(q));
    c.check("grad_loss.codebook", q.codebook().table().gradient_matrix());
  };
  if (c.template setting<bool>("l2_normalize"))
    with_metric(cosine_similarity{});
  else
    with_metric(squared_distance{});
}

// ---- MAUVE -----------------------------------------------------------------------------------------------------------

template <typename Scalar>
void replay_mauve(oracle_case<Scalar>& c) {
  vector_quantizer cells{learned_codes<Scalar>(c.axis("centroids", 0), c.axis("centroids", 1))};
  bindings<Scalar> b;
  b.bind("centroids", cells.codebook().table());
  b.load(c);
  const auto usage_of = [&](const std::string& sample) {
    typename decltype(cells)::workspace ws;
    const auto x = c.rows(sample);
    matrix<index_t> ids(x.rows(), 1);
    cells.encode(x, ids, ws);
    c.check_integers(sample + "_indices", {ids.data(), as_size(ids.size())});
    code_usage usage(cells.codes());
    usage.add(ids.data(), ids.rows());
    return usage;
  };
  const code_usage p = usage_of("p"), q = usage_of("q");
  for (const std::string star : {"", "_star"}) {
    const double smoothing = star.empty() ? 0 : 0.5;
    const auto f = make_divergence_frontier(p, q, {.grid = c.template setting<index_t>("grid"),
                                                   .scale = c.template setting<double>("scale"),
                                                   .smoothing = smoothing});
    const auto check_shares = [&](const std::string& name, const code_usage& usage) {
      std::vector<Scalar> shares;
      for (const double share : detail::shares_of(usage, smoothing)) shares.push_back(static_cast<Scalar>(share));
      c.check(name + star, shares);
    };
    check_shares("p_hist", p);
    check_shares("q_hist", q);
    std::vector<Scalar> curve;
    for (const auto& [x, y] : f.curve) curve.push_back(static_cast<Scalar>(x)), curve.push_back(static_cast<Scalar>(y));
    c.check("divergence_curve" + star, curve);
    c.check("mauve" + star, static_cast<Scalar>(f.score));
    c.check("frontier_integral" + star, static_cast<Scalar>(f.integral));
  }
}

}  // namespace

std::vector<replayer> vector_codebooks() {
  return {{"vq", replay_vq<float>, replay_vq<double>},
          {"simvq", replay_simvq<float>, replay_simvq<double>},
          {"rotation_trick", replay_rotation<float>, replay_rotation<double>},
          {"vq_taming", replay_taming<float>, replay_taming<double>},
          {"mauve", replay_mauve<float>, replay_mauve<double>}};
}

}  // namespace oracle
