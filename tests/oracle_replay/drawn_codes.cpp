// Quantisers that draw their codes: gumbel_vq, mcquic.
#include "binding.hpp"
#include "replays.hpp"

#include <sluice/codebook/gumbel_quantizer.hpp>
#include <sluice/codebook/mixture_quantizer.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- gumbel_vq -------------------------------------------------------------------------------------------------------

template <typename Scalar>
void gumbel_vq(oracle_case<Scalar>& c) {
  const auto tau = c.template setting<double>("tau_now");
  if (c.template setting<index_t>("depth") != 1) throw unsupported("a deeper projection");
  routing_context<Scalar> context;
  std::vector<double> draws;
  if (c.has("noise.gumbel")) draws = c.file().template read_vector<double>("noise.gumbel");
  context.random.replay(gumbel_quantizer<Scalar>::site, draws);
  context.training = c.template setting<bool>("train");
  const auto x = c.rows("x"), dy = c.rows("grad_out");
  const auto run = [&](const std::string& prefix, double diversity, const matrix<Scalar>& cotangent) {
    gumbel_quantizer<Scalar> q(x.cols(), c.template setting<index_t>("vq_dim"),
                               {.groups = c.template setting<index_t>("groups"),
                                .entries = c.template setting<index_t>("V"),
                                .shared_table = c.template setting<bool>("combine_groups"),
                                .start = tau,
                                .stop = tau,
                                .diversity_weight = diversity});
    bindings<Scalar> b, projection;
    for (auto* some : {&b, &projection}) {
      some->bind("weight_proj.weight", q.weight());
      some->bind("weight_proj.bias", q.bias());
    }
    b.bind("vars", q.values());
    b.load(c);
    typename gumbel_quantizer<Scalar>::tape tape;
    matrix<Scalar> y(x.rows(), q.outputs()), dx(x.rows(), x.cols());
    q.forward(x, y, tape, context);
    zero_gradients(q);
    q.backward(cotangent, dx, tape);
    c.check(prefix + ".x", dx);
    (diversity == 0 ? b : projection).check_gradients(c, prefix);
    if (diversity != 0) return c.check("diversity_loss", tape.loss());
    c.check("y", y);
    c.check_integers("indices", std::span<const index_t>(tape.ids.data(), as_size(tape.ids.size())));
    c.check("logits", matrix<Scalar>(tape.logits.map()));
    c.check("code_perplexity", tape.code_perplexity);
    c.check("prob_perplexity", tape.prob_perplexity);
  };
  run("grad", 0, dy);
  run("grad_diversity_loss", 1, matrix<Scalar>::Zero(dy.rows(), dy.cols()));
}

// ---- mcquic ----------------------------------------------------------------------------------------------------------

/// [N,channels,H W] of a file as rows [N H W,channels], and back.
template <typename T, typename Read>
std::vector<T> swap_axes(index_t items, index_t channels, index_t pixels, Read&& read, bool to_rows) {
  std::vector<T> out(as_size(items * channels * pixels));
  for (index_t n = 0; n < items; ++n)
    for (index_t a = 0; a < channels; ++a)
      for (index_t p = 0; p < pixels; ++p) {
        const index_t file = (n * channels + a) * pixels + p, row = (n * pixels + p) * channels + a;
        out[as_size(to_rows ? row : file)] = static_cast<T>(read(to_rows ? file : row));
      }
  return out;
}

template <typename Scalar>
void mcquic(oracle_case<Scalar>& c) {
  const auto parts = c.template setting<index_t>("m"), codes = c.template setting<index_t>("K"),
             width = c.template setting<index_t>("d");
  const auto levels = c.template setting<index_t>("levels"), items = c.template setting<index_t>("B");
  const index_t pixels = c.template setting<index_t>("H") * c.template setting<index_t>("W"), tokens = items * pixels;
  const auto of_level = [&](const std::string& name, index_t l) {
    return levels == 1 ? name : name + '.' + std::to_string(l);
  };
  const auto image = [&](const std::string& name) {
    const auto values = c.numbers(name);
    const auto rows = swap_axes<Scalar>(
        items, parts * width, pixels, [&](index_t i) { return values[as_size(i)]; }, true);
    return matrix<Scalar>(Eigen::Map<const matrix<Scalar>>(rows.data(), tokens, parts * width));
  };
  const auto check_image = [&](const std::string& name, const matrix<Scalar>& m) {
    c.check(name, std::span<const Scalar>(swap_axes<Scalar>(
                      items, parts * width, pixels, [&](index_t i) { return m.data()[i]; }, false)));
  };
  const auto check_ids = [&](const std::string& name, const index_t* ids) {
    c.check_integers(name, swap_axes<index_t>(
                               items, parts, pixels, [&](index_t i) { return ids[i]; }, false));
  };
  using quantizer = mixture_quantizer<Scalar>;
  std::vector<quantizer> stages;
  std::vector<typename quantizer::tape> tapes(as_size(levels));
  std::vector<bindings<Scalar>> bound(as_size(levels));
  std::vector<std::vector<double>> draws(as_size(levels));
  for (index_t l = 0; l < levels; ++l) {
    stages.emplace_back(parts, codes, width,
                        mixture_quantizer_options{.random_drop = c.template setting<bool>("random_drop")});
    const auto drop = c.file().template read_vector<double>(of_level("uniform.drop", l));
    const auto gumbel = c.file().template read_vector<double>(of_level("uniform.gumbel", l));
    // [N,M,pixels,K] in the file, [T,M,K] here.
    draws[as_size(l)].resize(2 * drop.size());
    for (index_t n = 0; n < items; ++n)
      for (index_t m = 0; m < parts; ++m)
        for (index_t p = 0; p < pixels; ++p)
          for (index_t k = 0; k < codes; ++k) {
            const index_t from = ((n * parts + m) * pixels + p) * codes + k,
                          to = ((n * pixels + p) * parts + m) * codes + k;
            draws[as_size(l)][as_size(2 * to)] = drop[as_size(from)];
            draws[as_size(l)][as_size(2 * to + 1)] = gumbel[as_size(from)];
          }
  }
  for (index_t l = 0; l < levels; ++l) {
    auto& b = bound[as_size(l)];
    b.bind(of_level("codebook", l), stages[as_size(l)].table());
    b.bind(of_level("temperature", l), stages[as_size(l)].temperature());
    b.load(c);
    bindings<Scalar> state;
    state.bind(of_level("freq_ema", l), stages[as_size(l)].usage());
    state.load(c);
  }
  // A level codes what the ones before have left; nothing is cut between them.
  const matrix<Scalar> x = image("x"), dy = image("grad_out");
  matrix<Scalar> rest = x, greedy = x, y = matrix<Scalar>::Zero(tokens, x.cols()), q(tokens, x.cols());
  for (index_t l = 0; l < levels; ++l) {
    auto& stage = stages[as_size(l)];
    auto& tape = tapes[as_size(l)];
    typename quantizer::workspace workspace;
    matrix<index_t> ids(tokens, parts);
    stage.encode(greedy, ids, workspace);
    check_ids(of_level("encode", l), ids.data());
    stage.decode(ids, q, workspace);
    greedy -= q;

    routing_context<Scalar> context;
    context.training = true;
    context.random.replay(quantizer::site, draws[as_size(l)]);
    stage.forward(rest, q, tape, context);
    check_image(of_level("dequantised", l), q);
    check_ids(of_level("sampled", l), tape.ids.data());
    check_ids(of_level("code", l), tape.counted.data());
    std::vector<index_t> dropped;
    std::vector<Scalar> logits;
    const auto table = stage.table().to_matrix();
    for (index_t n = 0; n < items; ++n)
      for (index_t m = 0; m < parts; ++m)
        for (index_t p = 0; p < pixels; ++p)
          for (index_t k = 0; k < codes; ++k) {
            const index_t t = n * pixels + p;
            const Scalar logit = tape.logits(t, m * codes + k);
            const bool is_out = logit == static_cast<Scalar>(quantizer::left_out);
            dropped.push_back(is_out);
            const Scalar square = (rest.row(t).segment(m * width, width) - table.row(m * codes + k)).squaredNorm();
            const Scalar theta = stage.temperature().value()[as_size(m)];
            logits.push_back(is_out ? -square * theta / std::sqrt(static_cast<Scalar>(codes)) : logit);
          }
    c.check_integers(of_level("dropped", l), dropped);
    c.check(of_level("logits_undropped", l), std::span<const Scalar>(logits));
    rest -= q;
    y += q;
  }
  check_image("y", y);
  matrix<Scalar> dx = matrix<Scalar>::Zero(tokens, x.cols()), own(tokens, x.cols());
  for (index_t l = levels; l-- > 0;) {
    zero_gradients(stages[as_size(l)]);
    stages[as_size(l)].backward(matrix<Scalar>(dy - dx), own, tapes[as_size(l)]);
    dx += own;
    bound[as_size(l)].check_gradients(c, "grad");
  }
  check_image("grad.x", dx);
  if (!c.template setting<bool>("reassign")) return;
  bindings<Scalar> counts;
  counts.bind("freq", stages[0].usage());
  counts.load(c);
  stages[0].reassign(random_source{1});
  c.check("codebook_reassigned", stages[0].table().to_matrix());
}

}  // namespace

std::vector<replayer> drawn_codes() {
  return {{"gumbel_vq", gumbel_vq<float>, gumbel_vq<double>}, {"mcquic", mcquic<float>, mcquic<double>}};
}

}  // namespace oracle
