// Quantisers of several codes a token: rvq, encodec_rvq, grouped_rvq, dac_rvq, kmeans_vq, rq_vae.
#include "binding.hpp"
#include "quantizer_step.hpp"
#include "replays.hpp"

#include <sluice/checkpoint/dac_quantizer.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/gradient/rotation.hpp>
#include <sluice/codebook/kmeans.hpp>
#include <sluice/codebook/repair/expire_codes.hpp>
#include <sluice/codebook/structure/group_projected.hpp>
#include <sluice/codebook/structure/product.hpp>
#include <sluice/codebook/structure/residual.hpp>
#include <sluice/codebook/structure/shared_product.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

namespace oracle {
namespace {

using namespace sluice;

/// The codebooks of a case, in the order of its tensors.
template <typename Scalar>
using codebooks_of = std::vector<moving_average_codes<Scalar>*>;

/// Codes, N and M of all codebooks, stacked in three tensors.
template <typename Scalar>
void load_stacked(const oracle_case<Scalar>& c, const codebooks_of<Scalar>& codebooks, const std::string& codes = "codebooks",
                  const std::string& sizes = "cluster_size", const std::string& sums = "embed_avg") {
  bindings<Scalar> b;
  index_t place = 0;
  for (auto* one : codebooks) {
    b.bind(codes, one->table(), place * one->table().size());
    if (c.has(sizes)) b.bind(sizes, one->sizes(), place * one->sizes().size());
    if (c.has(sums)) b.bind(sums, one->sums(), place * one->sums().size());
    ++place;
  }
  b.load(c);
}

template <typename Scalar>
void check_stacked(oracle_case<Scalar>& c, const codebooks_of<Scalar>& codebooks) {
  std::vector<Scalar> codes, sizes, sums;
  const auto append = [](std::vector<Scalar>& to, const parameter<Scalar>& p) {
    to.insert(to.end(), p.value().begin(), p.value().end());
  };
  for (auto* one : codebooks) append(codes, one->table()), append(sizes, one->sizes()), append(sums, one->sums());
  c.check("codebooks_after", codes);
  c.check("cluster_size_after", sizes);
  c.check("embed_avg_after", sums);
}

/// ids [T, M] as [M, T].
std::vector<index_t> stage_by_stage(const_matrix_map<index_t> ids) {
  std::vector<index_t> all;
  for (index_t m = 0; m < ids.cols(); ++m)
    for (index_t t = 0; t < ids.rows(); ++t) all.push_back(ids(t, m));
  return all;
}

std::span<const index_t> numbers_of(const matrix<index_t>& ids) { return {ids.data(), as_size(ids.size())}; }

template <typename Scalar>
moving_average_codes<Scalar> codes_of_case(const oracle_case<Scalar>& c, const std::string& tensor, double initial_size = 1) {
  const std::size_t rank = c.rank(tensor);
  return {c.axis(tensor, rank - 2), c.axis(tensor, rank - 1),
          {.decay = c.template setting<double>("decay"),
           .epsilon = c.template setting<double>("eps", 1e-5),
           .initial_size = initial_size}};
}

/// Restarts of codes with the draws of a case: the i-th call has the i-th draws, and then the first again.
struct drawn_expiry {
  using role = repair_role;
  template <typename Scalar>
  using memory = expire_codes::memory<Scalar>;

  expire_codes expiry;
  std::vector<std::vector<double>> draws;
  std::size_t calls = 0;

  template <typename Codes, typename Scalar>
  void after_step(Codes& codebook, const quantized_batch<Scalar>& batch, memory<Scalar>& m, buffer<index_t>& replaced) {
    routing_context<Scalar> drawn = batch.context;
    drawn.random.replay(expire_codes::site, draws.at(calls++ % draws.size()));
    expiry.after_step(codebook,
                      quantized_batch<Scalar>{batch.x, batch.codes, batch.ids, batch.seen, batch.counted, batch.search,
                                              batch.scratch, drawn},
                      m, replaced);
  }
};

/// The draw that takes this of n candidates.
double draw_of(index_t candidate, std::size_t n) { return (static_cast<double>(candidate) + 0.5) / static_cast<double>(n); }

/// Calls f(gradient policy).
template <typename Scalar, typename F>
void with_gradient_of_case(const oracle_case<Scalar>& c, F&& f) {
  if (c.template setting<bool>("rotation_trick", false))
    f(rotation{});
  else
    f(straight_through{});
}

/// One training step of a quantiser of moving averages: make(weight of the commitment) is the quantiser, codebooks(q)
/// its codebooks, losses(tape) its losses one by one.
template <typename Scalar, typename Make, typename Codebooks, typename Losses, typename CheckIds>
void replay_training(oracle_case<Scalar>& c, Make&& make, Codebooks&& codebooks, Losses&& losses, CheckIds&& check_ids) {
  const auto x = c.rows("x"), dy = c.rows("grad_out");
  auto q = make(1), without_loss = make(0);
  if (c.has("codebooks")) {
    load_stacked<Scalar>(c, codebooks(q));
    load_stacked<Scalar>(c, codebooks(without_loss));
  }
  quantizer_step<decltype(q)> step(q, x), plain(without_loss, x);
  c.check("y", step.y);
  check_ids(matrix<index_t>(step.tape.ids.map()));
  c.check("commit_loss", losses(step.tape));
  c.check("grad.x", plain.backward(without_loss, dy));
  c.check("grad_commit_loss.x", step.backward_of_losses(q));
  q.after_step(step.tape);
  check_stacked<Scalar>(c, codebooks(q));
}

template <typename Stage, typename Scalar = typename Stage::scalar>
codebooks_of<Scalar> codebooks_of_stages(residual_quantizer<Stage>& q) {
  codebooks_of<Scalar> all;
  for (index_t j = 0; j < q.depth(); ++j) all.push_back(&q.stage(j).codebook());
  return all;
}

template <typename Scalar, typename Tape>
void append_losses(std::vector<Scalar>& losses, const Tape& tape) {
  for (const auto& stage : tape.stages) losses.push_back(stage.loss());
}

/// A case of a residual quantiser, make(weight of the commitment): a step where it trains, else what is encoded, and what
/// that decodes to.
template <typename Scalar, typename Make, typename CheckIds>
void replay_stages(oracle_case<Scalar>& c, Make&& make, CheckIds&& check_ids) {
  const auto codebooks = [](auto& q) { return codebooks_of_stages(q); };
  if (c.template setting<bool>("train")) {
    const auto losses = [](const auto& tape) {
      std::vector<Scalar> all;
      append_losses(all, tape);
      return all;
    };
    return replay_training(c, make, codebooks, losses, check_ids);
  }
  auto q = make(1);
  load_stacked<Scalar>(c, codebooks(q));
  const auto x = c.rows("x");
  typename decltype(q)::workspace ws;
  matrix<Scalar> y(x.rows(), x.cols()), decoded(x.rows(), x.cols());
  matrix<index_t> ids(x.rows(), q.code_columns());
  q.forward(x, y, ws);
  q.encode(x, ids, ws);
  q.decode(ids, decoded, ws);
  c.check("y", y);
  c.check("y", decoded);
  check_ids(ids);
}

// ---- rvq -------------------------------------------------------------------------------------------------------------

template <typename Scalar>
void replay_rvq(oracle_case<Scalar>& c) {
  with_gradient_of_case(c, [&](auto gradient) {
    const auto make = [&](double weight) {
      const vector_quantizer stage{codes_of_case(c, "codebooks"), gradient, commitment_loss{.encoder = weight}};
      return residual_quantizer{std::vector(as_size(c.axis("codebooks", 0)), stage), {.gradient = residual_gradient::each_stage}};
    };
    replay_stages(c, make, [&](const matrix<index_t>& ids) { c.check_integers("indices", numbers_of(ids)); });
  });
}

// ---- encodec_rvq -----------------------------------------------------------------------------------------------------

/// The first call's k-means, a stage on what the stages before it leave. The source takes the means for sums.
template <typename Scalar, typename Q>
std::vector<Scalar> begin_at_means(const oracle_case<Scalar>& c, Q& q) {
  matrix<Scalar> left = c.rows("x");
  std::vector<Scalar> means;
  for (index_t j = 0; j < q.depth(); ++j) {
    auto& codebook = q.stage(j).codebook();
    kmeans<Scalar, keep_codes> clusters(codebook.codes(), codebook.inputs(),
                                        {.rounds = c.template setting<index_t>("kmeans_iters"), .until_settled = false});
    const auto order = c.integers("permutation.init." + std::to_string(j));
    matrix<Scalar> first(codebook.codes(), codebook.inputs());
    for (index_t k = 0; k < first.rows(); ++k) first.row(k) = left.row(order.at(as_size(k)));
    clusters.begin_at(first);
    clusters.fit(left);
    codebook.table().assign(clusters.table());
    codebook.sums().assign(clusters.table());
    std::copy(clusters.sizes().begin(), clusters.sizes().end(), codebook.sizes().data());
    means.insert(means.end(), clusters.table().data(), clusters.table().data() + first.size());
    matrix<Scalar> value(left.rows(), left.cols());
    typename std::remove_cvref_t<decltype(q.stage(j))>::workspace ws;
    q.stage(j).forward(left, value, ws);
    left -= value;
  }
  return means;
}

template <typename Scalar>
void replay_encodec(oracle_case<Scalar>& c) {
  const auto quantizers = c.template setting<index_t>("quantizers"), used = c.template setting<index_t>("used");
  const auto make = [&](double weight) {
    const std::string tensor = c.has("codebooks") ? "codebooks" : "expected.codebooks_after";
    const vector_quantizer stage{codes_of_case(c, tensor), commitment_loss{.encoder = weight}};
    residual_quantizer q{std::vector(as_size(quantizers), stage), {.gradient = residual_gradient::through_stages}};
    q.use_stages(used);
    if (c.template setting<index_t>("kmeans_iters") > 0) c.check("kmeans_means", begin_at_means(c, q));
    return q;
  };
  replay_stages(c, make, [&](const matrix<index_t>& ids) {
    const matrix<index_t> of_used = ids.leftCols(used);
    c.check_integers("indices", stage_by_stage({of_used.data(), of_used.rows(), of_used.cols()}));
  });
}

// ---- grouped_rvq -----------------------------------------------------------------------------------------------------

template <typename Scalar>
void replay_grouped(oracle_case<Scalar>& c) {
  const auto groups = c.template setting<index_t>("groups"), quantizers = c.template setting<index_t>("quantizers");
  const auto shared = c.template setting<bool>("shared");
  with_gradient_of_case(c, [&](auto gradient) {
    const residual_options options{.gradient = residual_gradient::each_stage};
    // In the case one code dies, of the last stage: nobody searches it before the codes are made once more.
    drawn_expiry expiry{{.threshold = c.template setting<double>("threshold"), .noise = 0, .recompute = true}, {{}}, 0};
    if (c.has("permutation.0")) {
      const auto order = c.integers("permutation.0");
      expiry.draws.front().assign(as_size(c.template setting<index_t>("codes")), draw_of(order.front(), order.size()));
    }
    const auto make = [&](double weight) {
      const vector_quantizer stage{codes_of_case(c, "codebooks"), gradient, commitment_loss{.encoder = weight}, expiry};
      const residual_quantizer part = shared ? residual_quantizer{stage, quantizers, options}
                                             : residual_quantizer{std::vector(as_size(quantizers), stage), options};
      return product_quantizer{std::vector(as_size(groups), part)};
    };
    const auto codebooks = [&](auto& q) {
      codebooks_of<Scalar> all;
      for (index_t g = 0; g < groups; ++g)
        for (auto* one : codebooks_of_stages(q.part(g))) all.push_back(one);
      if (shared) all.resize(1);
      return all;
    };
    const auto losses = [](const auto& tape) {
      std::vector<Scalar> all;
      for (const auto& part : tape.parts) append_losses(all, part);
      return all;
    };
    replay_training(c, make, codebooks, losses, [&](const matrix<index_t>& ids) {
      std::vector<index_t> by_group;
      for (index_t g = 0; g < groups; ++g)
        for (index_t t = 0; t < ids.rows(); ++t)
          for (index_t j = 0; j < quantizers; ++j) by_group.push_back(ids(t, g * quantizers + j));
      c.check_integers("indices", by_group);
    });
  });
}

// ---- dac_rvq ---------------------------------------------------------------------------------------------------------

/// Another stage of the same values with other losses.
template <typename Scalar>
dac_stage<Scalar> with_losses(const dac_stage<Scalar>& stage, const commitment_loss& losses) {
  dac_stage<Scalar> other(stage.inputs(), vector_quantizer(stage.quantizer().codebook(), cosine_similarity{}, losses));
  std::vector<const parameter<Scalar>*> from;
  for_each_parameter(stage, [&](const std::string&, const auto& p) { from.push_back(&p); });
  auto next = from.begin();
  for_each_parameter(other, [&](const std::string&, auto& p) { p.assign((*next++)->map()); });
  return other;
}

/// The gradients of g and v where W = g v / |v|, row by row.
template <typename Scalar>
void check_weight_norm(oracle_case<Scalar>& c, const std::string& name, const parameter<Scalar>& weight) {
  const auto g = c.numbers(name + ".weight_g");
  const auto dw = weight.gradient_matrix();
  const auto numbers = c.numbers(name + ".weight_v");
  const matrix<Scalar> v = Eigen::Map<const matrix<Scalar>>(numbers.data(), dw.rows(), dw.cols());
  matrix<Scalar> dg(dw.rows(), 1), dv(dw.rows(), dw.cols());
  for (index_t r = 0; r < dw.rows(); ++r) {
    const Scalar length = v.row(r).norm();
    dg(r, 0) = dw.row(r).dot(v.row(r)) / length;
    dv.row(r) = g.at(as_size(r)) / length * (dw.row(r) - dg(r, 0) / length * v.row(r));
  }
  c.check("grad." + name + ".weight_g", dg);
  c.check("grad." + name + ".weight_v", dv);
}

template <typename Scalar>
void replay_dac(oracle_case<Scalar>& c) {
  // The file's names are those of the codec's checkpoints.
  const auto loaded = load_dac_quantizer<Scalar>(std::filesystem::path(c.file().file_name()), "quantizers");
  const auto x = c.rows("x"), dy = c.rows("grad_out");
  const index_t items = c.axis("x", 0), frames = c.axis("x", 1), depth = loaded.depth();
  const auto make = [&](double encoder, double codebook, double dropout) {
    std::vector<dac_stage<Scalar>> stages;
    for (index_t j = 0; j < depth; ++j)
      stages.push_back(with_losses(loaded.stage(j), {.encoder = encoder, .codebook = codebook, .over_hidden = true}));
    return dac_quantizer<Scalar>(std::move(stages), {.gradient = residual_gradient::through_stages, .dropout = dropout});
  };
  // ids [B,stage,N] and z of every stage, those too that the dropout leaves out.
  auto whole = make(0, 0, 0);
  quantizer_step<decltype(whole)> all(whole, x);
  std::vector<index_t> ids;
  for (index_t b = 0; b < items; ++b)
    for (index_t j = 0; j < depth; ++j)
      for (index_t n = 0; n < frames; ++n) ids.push_back(all.tape.ids(b * frames + n, j));
  c.check_integers("indices", ids);
  index_t width = 0;
  for (const auto& stage : all.tape.stages) width += stage.z.cols();
  matrix<Scalar> latents(x.rows(), width);
  width = 0;
  for (const auto& stage : all.tape.stages) {
    latents.middleCols(width, stage.z.cols()) = stage.z.map();
    width += stage.z.cols();
  }
  c.check("latents", latents);

  std::vector<index_t> borders;
  for (index_t b = 0; b <= items; ++b) borders.push_back(b * frames);
  std::vector<double> draws;
  if (c.has("n_quantizers"))
    for (const index_t n : c.integers("n_quantizers")) {
      draws.push_back(0.5);
      draws.push_back((static_cast<double>(std::min(n, depth)) - 0.5) / static_cast<double>(depth));
    }
  const double dropout = draws.empty() ? 0 : 1;
  const routing_context<Scalar> context{
      .training = true, .random = random_source{}.replay(prefix_dropout_site, draws), .groups = borders};
  auto plain = make(0, 0, dropout), committed = make(1, 0, dropout), learning = make(0, 1, dropout);
  quantizer_step<decltype(plain)> step(plain, x, context), commitment(committed, x, context), codes(learning, x, context);
  c.check("y", step.y);
  c.check("grad.x", step.backward(plain, dy));
  c.check("commitment_loss", commitment.tape.loss());
  c.check("grad_commitment_loss.x", commitment.backward_of_losses(committed));
  c.check("codebook_loss", codes.tape.loss());
  codes.backward_of_losses(learning);
  for (index_t j = 0; j < depth; ++j) {
    const std::string name = "quantizers." + std::to_string(j);
    const auto check_projection = [&](const std::string& projection, auto& layer) {
      check_weight_norm(c, projection, layer.weight());
      c.check("grad." + projection + ".bias", layer.bias().gradient_matrix());
    };
    check_projection(name + ".in_proj", plain.stage(j).project_in());
    check_projection(name + ".out_proj", plain.stage(j).project_out());
    c.check("grad_codebook_loss." + name + ".codebook.weight",
            learning.stage(j).quantizer().codebook().table().gradient_matrix());
  }
}

// ---- kmeans_vq -------------------------------------------------------------------------------------------------------

/// make(encoder, codebook) is the quantiser behind the projection; bind(quantiser, bindings) ties its codes to the file.
template <typename Scalar, typename Make, typename Bind>
void run_kmeans_vq(oracle_case<Scalar>& c, Make&& make, Bind&& bind) {
  const auto groups = c.template setting<index_t>("groups");
  const auto x = c.rows("x"), dy = c.rows("grad_out");
  std::vector<index_t> items;
  for (index_t b = 0; b <= c.axis("x", 0); ++b) items.push_back(b * c.axis("x", 1));
  const routing_context<Scalar> context{.training = true, .groups = items};
  const auto projected = [&](double encoder, double codebook) { return group_projected_quantizer{groups, make(encoder, codebook)}; };
  auto q = projected(c.template setting<double>("gamma"), 1), without_loss = projected(0, 0);
  const auto bind_all = [&](auto& target) {
    bindings<Scalar> b;
    b.bind("projection.0.weight", target.projection());
    b.bind("projection.1.weight", target.gain());
    b.bind("projection.1.bias", target.bias());
    bind(target.quantizer(), b);
    b.load(c);
    return b;
  };
  const auto bound = bind_all(q), bound_without_loss = bind_all(without_loss);
  quantizer_step<decltype(q)> step(q, x, context), plain(without_loss, x, context);
  const matrix<index_t> ids = step.tape.ids.map();
  c.check("y", step.y);
  c.check("projected", matrix<Scalar>(step.tape.z.map()));
  c.check_integers("indices", numbers_of(ids));
  c.check("kmeans_loss", step.tape.loss());
  double perplexity = 0;
  for (index_t g = 0; g < groups; ++g) {
    code_usage usage(q.codes(g));
    for (index_t t = 0; t < ids.rows(); ++t) usage.add(&ids(t, g), 1);
    perplexity += usage.perplexity(1e-7);
  }
  c.check("code_perplexity", static_cast<Scalar>(perplexity));
  c.check("grad.x", plain.backward(without_loss, dy));
  bound_without_loss.check_gradients(c, "grad");
  c.check("grad_kmeans_loss.x", step.backward_of_losses(q));
  bound.check_gradients(c, "grad_kmeans_loss");
}

template <typename Scalar>
void replay_kmeans_vq(oracle_case<Scalar>& c) {
  const auto groups = c.template setting<index_t>("groups");
  const index_t codes = c.axis("embedding", 0), width = c.axis("embedding", 2);
  if (c.template setting<bool>("combine_groups")) {
    run_kmeans_vq(
        c,
        [&](double encoder, double codebook) {
          const commitment_loss loss{.encoder = encoder, .codebook = codebook};
          return shared_product_quantizer{vector_quantizer{learned_codes<Scalar>(codes, width), loss}, groups};
        },
        [](auto& q, bindings<Scalar>& b) { b.bind("embedding", q.part().codebook().table()); });
    return;
  }
  run_kmeans_vq(
      c,
      [&](double encoder, double codebook) {
        const auto share = static_cast<double>(groups);  // a part's mean is over its own columns
        const commitment_loss loss{.encoder = encoder / share, .codebook = codebook / share};
        return product_quantizer{std::vector(as_size(groups), vector_quantizer{learned_codes<Scalar>(codes, width), loss})};
      },
      [&](auto& q, bindings<Scalar>& b) {
        for (index_t g = 0; g < groups; ++g)
          b.bind_at("embedding", q.part(g).codebook().table(), {g * width, groups * width, 1});
      });
}

// ---- rq_vae ----------------------------------------------------------------------------------------------------------

/// Patches of an image [B,H,W,D] as vectors (row in patch, column in patch, channel), and back.
struct patches_of_image {
  index_t B, H, W, D, h, w;

  index_t patch_rows() const { return H / h; }
  index_t patch_columns() const { return W / w; }
  /// f(where it is in the image, where it is in the vectors).
  template <typename F>
  void for_each(F&& f) const {
    index_t place = 0;
    for (index_t b = 0; b < B; ++b)
      for (index_t i = 0; i < h; ++i)
        for (index_t j = 0; j < w; ++j)
          for (index_t row = i * patch_rows(); row < (i + 1) * patch_rows(); ++row)
            for (index_t column = j * patch_columns(); column < (j + 1) * patch_columns(); ++column)
              for (index_t d = 0; d < D; ++d) f(((b * H + row) * W + column) * D + d, place++);
  }
  template <typename Scalar>
  matrix<Scalar> vectors(const matrix<Scalar>& image) const {
    matrix<Scalar> all(B * h * w, patch_rows() * patch_columns() * D);
    for_each([&](index_t from, index_t to) { all.data()[to] = image.data()[from]; });
    return all;
  }
  template <typename Scalar>
  matrix<Scalar> image(const matrix<Scalar>& vectors) const {
    matrix<Scalar> all(B * H * W, D);
    for_each([&](index_t to, index_t from) { all.data()[to] = vectors.data()[from]; });
    return all;
  }
};

template <typename Scalar>
void replay_rq_vae(oracle_case<Scalar>& c) {
  const auto shape = c.config().at("code_shape").template get<std::vector<index_t>>();
  const patches_of_image cut{c.axis("x", 0), c.axis("x", 1), c.axis("x", 2), c.axis("x", 3), shape.at(0), shape.at(1)};
  const index_t depth = shape.at(2);
  const auto x = cut.vectors(c.rows("x")), dy = cut.vectors(c.rows("grad_out"));
  const auto shared = c.template setting<bool>("shared"), train = c.template setting<bool>("train");
  const auto of_depth = [&](const std::string& name, index_t j) { return shared ? name : name + '.' + std::to_string(j); };
  drawn_expiry expiry{{.threshold = 1, .recompute = true}, {}, 0};
  for (index_t j = 0; train && j < depth; ++j) {
    const std::string suffix = '.' + std::to_string(j);
    const auto order = c.integers("permutation" + suffix);
    std::vector<double> draws;
    for (index_t k = 0; k < c.axis(of_depth("codebook", j), 0); ++k) draws.push_back(draw_of(order.at(as_size(k)), order.size()));
    if (c.has("uniform" + suffix))
      for (const Scalar u : c.numbers("uniform" + suffix)) draws.push_back(static_cast<double>(u));
    expiry.draws.push_back(std::move(draws));
  }
  const auto stage_of = [&](double weight, index_t j) {
    drawn_expiry own = expiry;
    if (train && !shared) own.draws = {expiry.draws.at(as_size(j))};
    vector_quantizer stage{codes_of_case(c, of_depth("codebook", j)), commitment_loss{.encoder = weight / static_cast<double>(depth)}, own};
    load_stacked<Scalar>(c, {&stage.codebook()}, of_depth("codebook", j), of_depth("cluster_size_ema", j), of_depth("embed_ema", j));
    return stage;
  };
  const auto replay = [&](auto&& make) {
    auto q = make(1), without_loss = make(0);
    quantizer_step<decltype(q)> step(q, x), plain(without_loss, x);
    c.check("y", cut.image(step.y));
    c.check_integers("indices", numbers_of(step.tape.ids.map()));
    c.check("commitment_loss", step.tape.loss());
    c.check("grad.x", cut.image(plain.backward(without_loss, dy)));
    c.check("grad_commitment_loss.x", cut.image(step.backward_of_losses(q)));
    if (train) {
      q.after_step(step.tape);
      for (index_t j = 0; j < (shared ? 1 : depth); ++j) {
        auto& codebook = q.stage(j).codebook();
        c.check(of_depth("codebook_after", j), codebook.table().to_matrix());
        c.check(of_depth("cluster_size_ema_after", j), codebook.sizes().to_matrix());
        c.check(of_depth("embed_ema_after", j), codebook.sums().to_matrix());
      }
      return;
    }
    // What a prior is trained on: softmax(-|r_j - c|^2 / 0.7), along the codes that were taken.
    std::vector<Scalar> soft;
    const auto codes = q.stage(0).codebook().table().to_matrix();
    for (index_t t = 0; t < x.rows(); ++t)
      for (const auto& stage : step.tape.stages) {
        Eigen::Array<Scalar, Eigen::Dynamic, 1> p = -(codes.rowwise() - stage.kept.x().row(t)).rowwise().squaredNorm() / Scalar(0.7);
        p = (p - p.maxCoeff()).exp().eval();
        p /= p.sum();
        soft.insert(soft.end(), p.begin(), p.end());
      }
    c.check("soft_codes", soft);
  };
  if (!shared) {
    replay([&](double weight) {
      std::vector stages{stage_of(weight, 0)};
      for (index_t j = 1; j < depth; ++j) stages.push_back(stage_of(weight, j));
      return residual_quantizer{std::move(stages)};
    });
  } else if (train) {
    replay([&](double weight) { return residual_quantizer{stage_of(weight, 0), depth, moves_between_depths{}}; });
  } else {
    replay([&](double weight) { return residual_quantizer{stage_of(weight, 0), depth}; });
  }
}

}  // namespace

std::vector<replayer> residual_codebooks() {
  return {{"rvq", replay_rvq<float>, replay_rvq<double>},
          {"rq_vae", replay_rq_vae<float>, replay_rq_vae<double>},
          {"encodec_rvq", replay_encodec<float>, replay_encodec<double>},
          {"dac_rvq", replay_dac<float>, replay_dac<double>},
          {"kmeans_vq", replay_kmeans_vq<float>, replay_kmeans_vq<double>},
          {"grouped_rvq", replay_grouped<float>, replay_grouped<double>}};
}

}  // namespace oracle
