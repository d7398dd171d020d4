// Quantisers of several codes a token: rvq, rq_vae, encodec_rvq, grouped_rvq.
#include "binding.hpp"
#include "quantizer_step.hpp"
#include "replays.hpp"

#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/gradient/rotation.hpp>
#include <sluice/codebook/structure/product.hpp>
#include <sluice/codebook/structure/residual.hpp>
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
  load_stacked<Scalar>(c, codebooks(q));
  load_stacked<Scalar>(c, codebooks(without_loss));
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

// ---- rvq -------------------------------------------------------------------------------------------------------------

template <typename Scalar>
void replay_rvq(oracle_case<Scalar>& c) {
  with_gradient_of_case(c, [&](auto gradient) {
    const auto make = [&](double weight) {
      const vector_quantizer stage{codes_of_case(c, "codebooks"), gradient, commitment_loss{.encoder = weight}};
      return residual_quantizer{std::vector(as_size(c.axis("codebooks", 0)), stage), {.gradient = residual_gradient::each_stage}};
    };
    const auto check_ids = [&](const matrix<index_t>& ids) { c.check_integers("indices", numbers_of(ids)); };
    if (c.template setting<bool>("train")) {
      replay_training(c, make, [](auto& q) { return codebooks_of_stages(q); },
                      [](const auto& tape) {
                        std::vector<Scalar> losses;
                        append_losses(losses, tape);
                        return losses;
                      },
                      check_ids);
      return;
    }
    auto q = make(1);
    load_stacked<Scalar>(c, codebooks_of_stages(q));
    const auto x = c.rows("x");
    typename decltype(q)::workspace ws;
    matrix<Scalar> y(x.rows(), x.cols());
    matrix<index_t> ids(x.rows(), q.code_columns());
    q.forward(x, y, ws);
    q.encode(x, ids, ws);
    c.check("y", y);
    check_ids(ids);
  });
}

// ---- encodec_rvq -----------------------------------------------------------------------------------------------------

template <typename Scalar>
void replay_encodec(oracle_case<Scalar>& c) {
  const auto quantizers = c.template setting<index_t>("quantizers"), used = c.template setting<index_t>("used");
  if (c.template setting<index_t>("kmeans_iters") > 0) throw unsupported("k-means on the first batch");
  const auto make = [&](double weight) {
    const vector_quantizer stage{codes_of_case(c, "codebooks"), commitment_loss{.encoder = weight}};
    residual_quantizer q{std::vector(as_size(quantizers), stage), {.gradient = residual_gradient::through_stages}};
    q.use_stages(used);
    return q;
  };
  const auto check_ids = [&](const matrix<index_t>& ids) {
    const matrix<index_t> of_used = ids.leftCols(used);
    c.check_integers("indices", stage_by_stage({of_used.data(), of_used.rows(), of_used.cols()}));
  };
  if (c.template setting<bool>("train")) {
    replay_training(c, make, [](auto& q) { return codebooks_of_stages(q); },
                    [](const auto& tape) {
                      std::vector<Scalar> losses;
                      append_losses(losses, tape);
                      return losses;
                    },
                    check_ids);
    return;
  }
  auto q = make(1);
  load_stacked<Scalar>(c, codebooks_of_stages(q));
  const auto x = c.rows("x");
  typename decltype(q)::workspace ws;
  matrix<Scalar> y(x.rows(), x.cols());
  matrix<index_t> ids(x.rows(), q.code_columns());
  q.encode(x, ids, ws);
  q.decode(ids, y, ws);
  c.check("y", y);
  check_ids(ids);
}

// ---- grouped_rvq -----------------------------------------------------------------------------------------------------

template <typename Scalar>
void replay_grouped(oracle_case<Scalar>& c) {
  const auto groups = c.template setting<index_t>("groups"), quantizers = c.template setting<index_t>("quantizers");
  if (c.template setting<bool>("shared")) throw unsupported("expiry in a shared codebook");
  with_gradient_of_case(c, [&](auto gradient) {
    const auto make = [&](double weight) {
      const vector_quantizer stage{codes_of_case(c, "codebooks"), gradient, commitment_loss{.encoder = weight}};
      const residual_quantizer part{std::vector(as_size(quantizers), stage), {.gradient = residual_gradient::each_stage}};
      return product_quantizer{std::vector(as_size(groups), part)};
    };
    const auto codebooks = [&](auto& q) {
      codebooks_of<Scalar> all;
      for (index_t g = 0; g < groups; ++g)
        for (auto* one : codebooks_of_stages(q.part(g))) all.push_back(one);
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
  if (c.template setting<bool>("train")) throw unsupported("restart of codes");
  if (!c.template setting<bool>("shared")) throw unsupported("separate codebooks without training");
  const auto make = [&](double weight) {
    residual_quantizer q{vector_quantizer{codes_of_case(c, "codebook"), commitment_loss{.encoder = weight / static_cast<double>(depth)}}, depth};
    load_stacked<Scalar>(c, {&q.stage(0).codebook()}, "codebook", "cluster_size_ema", "embed_ema");
    return q;
  };
  auto q = make(1), without_loss = make(0);
  quantizer_step<decltype(q)> step(q, x), plain(without_loss, x);
  c.check("y", cut.image(step.y));
  c.check_integers("indices", numbers_of(step.tape.ids.map()));
  c.check("commitment_loss", step.tape.loss());
  c.check("grad.x", cut.image(plain.backward(without_loss, dy)));
  c.check("grad_commitment_loss.x", cut.image(step.backward_of_losses(q)));
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
}

}  // namespace

std::vector<replayer> residual_codebooks() {
  return {{"rvq", replay_rvq<float>, replay_rvq<double>},
          {"rq_vae", replay_rq_vae<float>, replay_rq_vae<double>},
          {"encodec_rvq", replay_encodec<float>, replay_encodec<double>},
          {"grouped_rvq", replay_grouped<float>, replay_grouped<double>}};
}

}  // namespace oracle
