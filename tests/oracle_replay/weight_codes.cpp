// Vector quantisers of weights and what trains their codes: GPTVQ, AQLM's decode and gradients, PV-Tuning's discrete step.
#include "replays.hpp"

#include <sluice/quant/compensated_stacks.hpp>
#include <sluice/quant/compensated_tuples.hpp>
#include <sluice/quant/discrete_step.hpp>
#include <sluice/quant/tunable_codes.hpp>

namespace oracle {

namespace {

using namespace sluice;

/// 2 / T x^T x, as GPTQ and its kin take it.
template <typename Scalar>
matrix<double> second_moments(oracle_case<Scalar>& c) {
  const matrix<double> x = c.rows("x").template cast<double>();
  return 2.0 / static_cast<double>(x.rows()) * x.transpose() * x;
}

template <typename Scalar>
void replay_gptvq(oracle_case<Scalar>& c) {
  const matrix<float> w = c.rows("w").template cast<float>();  // exact
  const matrix<double> h = second_moments(c);
  const tuple_options o{
      .codes = c.template setting<index_t>("K"),
      .tile_inputs = c.template setting<index_t>("dim"),
      .group_outputs = c.template setting<index_t>("rows_per_group"),
      .group_inputs = c.template setting<index_t>("columns_per_group"),
      .rounds = c.template setting<index_t>("kmeans_iters"),
      .metric = c.template setting<bool>("hessian_weighted") ? tuple_metric::released : tuple_metric::plain,
      .empty = unweighed::zero,
      .block = c.template setting<index_t>("blocksize"),
  };
  const tunable_codes<Scalar> codes =
      compensated_tuples<Scalar>(w, inverse_factor(h, {.damping = c.template setting<double>("percdamp")}), o);
  std::vector<Scalar> entries;
  std::vector<index_t> assignments;
  const index_t row_groups = w.rows() / o.group_outputs, column_groups = w.cols() / o.group_inputs;
  for (index_t column = 0; column < column_groups; ++column)
    for (index_t row = 0; row < row_groups; ++row) {
      const auto book = codes.codebook(row * column_groups + column, 0).value();
      entries.insert(entries.end(), book.begin(), book.end());
      const index_t tuples = o.group_inputs / o.tile_inputs;
      for (const auto id : codes.shape()
                               .indices[0]
                               .block(row * o.group_outputs, column * tuples, o.group_outputs, tuples)
                               .template reshaped<Eigen::RowMajor>())
        assignments.push_back(id);
    }
  const matrix<double> q = codes.to_matrix().template cast<double>(), error = w.cast<double>() - q;
  c.check("codebooks", entries);
  c.check_integers("assignments", assignments);
  c.check("q", matrix<Scalar>(q.cast<Scalar>()));
  c.check("trace_error", static_cast<Scalar>((error * h).cwiseProduct(error).sum()));
}

/// Codebooks [M,K,og,ig] of a case, each [K, og ig], and codes [A,B,M].
template <typename Scalar>
vector_codes additive_codes(oracle_case<Scalar>& c, const std::string& books, const std::string& ids) {
  const index_t last = static_cast<index_t>(c.rank(books)) - 1;
  vector_codes codes{.outputs = c.template setting<index_t>("out"),
                     .inputs = c.template setting<index_t>("in_"),
                     .tile_outputs = last == 3 ? c.axis(books, 2) : 1,
                     .tile_inputs = c.axis(books, as_size(last))};
  const index_t stages = c.axis(books, 0), size = c.axis(books, 1);
  const auto entries = c.numbers(books);
  const auto all = c.integers(ids);
  for (index_t m = 0; m < stages; ++m) {
    const index_t width = codes.tile_outputs * codes.tile_inputs;
    codes.codebooks.push_back(
        Eigen::Map<const matrix<Scalar>>(entries.data() + m * size * width, size, width).template cast<float>());
    matrix<std::uint16_t> indices(codes.tile_rows(), codes.tile_cols());
    for (index_t t = 0; t < indices.size(); ++t)
      indices.data()[t] = static_cast<std::uint16_t>(all[as_size(t * stages + m)]);
    codes.indices.push_back(indices);
  }
  return codes;
}

template <typename Scalar>
void replay_aqlm(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("kind") != "decode") throw unsupported("not a decode");
  vector_codes plain = additive_codes(c, "codebooks", "codes");
  // The file has a scale a tile row, or a tile; here every row has its own.
  const matrix<Scalar> scales =
      Eigen::Map<const matrix<Scalar>>(c.numbers("scales").data(), c.axis("scales", 0), c.axis("scales", 1));
  plain.scale_inputs = scales.cols() == 1 ? 0 : plain.tile_inputs;
  plain.scales.resize(plain.outputs, scales.cols());
  for (index_t o = 0; o < plain.outputs; ++o)
    plain.scales.row(o) = scales.row(o / plain.tile_outputs).template cast<float>();
  tunable_codes<Scalar> codes(plain);
  const matrix<Scalar> weight = codes.to_matrix();
  c.check("weight", weight);
  c.check("y", matrix<Scalar>(c.rows("x") * weight.transpose()));
  codes.backward(c.rows("grad_w"));
  std::vector<Scalar> dcodebooks;
  for (index_t m = 0; m < codes.stages(); ++m)
    for (const Scalar d : codes.codebook(0, m).gradient()) dcodebooks.push_back(d);
  matrix<Scalar> dscales = matrix<Scalar>::Zero(scales.rows(), scales.cols());
  for (index_t o = 0; o < plain.outputs; ++o)
    dscales.row(o / plain.tile_outputs) += codes.scales().gradient_map().row(o);
  c.check("grad.codebooks", dcodebooks);
  c.check("grad.scales", dscales);
}

template <typename Scalar>
void replay_pv_tuning(oracle_case<Scalar>& c) {
  if (c.template setting<index_t>("beam") != 1) throw unsupported("a beam of more than one");
  vector_codes plain = additive_codes(c, "codebook", "prev_codes");
  const auto scales = c.numbers("scales");
  plain.scales = Eigen::Map<const matrix<Scalar>>(scales.data(), plain.outputs, 1).template cast<float>();
  tunable_codes<Scalar> codes(plain);
  c.check("prev_weight", codes.to_matrix());
  discrete_step_options o{.fraction = c.template setting<double>("max_update_fraction"), .trust = {}};
  if (!c.config().at("trust_ratio").is_null()) o.trust = c.template setting<double>("trust_ratio");
  discrete_step<Scalar>(codes, c.rows("reference"), o);
  std::vector<index_t> ids;
  for (const auto id : codes.shape().indices[0].template reshaped<Eigen::RowMajor>()) ids.push_back(id);
  c.check_integers("codes", ids);
  c.check("weight", codes.to_matrix());
}

template <typename Scalar>
std::vector<index_t> as_integers(const matrix<std::uint16_t>& indices) {
  return {indices.data(), indices.data() + indices.size()};
}

}  // namespace

template <typename Scalar>
void vptq_sweep(oracle_case<Scalar>& c) {
  const matrix<float> w = c.rows("w").template cast<float>();  // exact
  const matrix<double> h = second_moments(c);
  const inverse_factor factor(h, {.damping = c.template setting<double>("percdamp")});
  c.check("h", matrix<Scalar>(h.cast<Scalar>()));
  column_codes codes;
  codes.main.outputs = w.rows();
  codes.main.inputs = w.cols();
  codes.main.tile_outputs = c.template setting<index_t>("vector");
  codes.permutation = factor.order();
  const auto add_stage = [&](const char* centroids) {
    codes.main.codebooks.push_back(c.rows(centroids).template cast<float>());
    codes.main.indices.emplace_back(matrix<std::uint16_t>::Zero(codes.main.tile_rows(), codes.main.tile_cols()));
  };
  add_stage("centroids");
  const matrix<double> left = sweep_stacks(w, factor, codes, c.template setting<index_t>("block"));
  c.check_integers("indices", as_integers<Scalar>(codes.main.indices[0]));
  c.check("q", matrix<Scalar>(codes.to_matrix().template cast<Scalar>()));
  c.check("error", matrix<Scalar>(left.cast<Scalar>()));
  add_stage("res_centroids");
  sweep_stacks(w, factor, codes, c.template setting<index_t>("block"));
  c.check_integers("residual.indices", as_integers<Scalar>(codes.main.indices[0]));
  c.check_integers("residual.res_indices", as_integers<Scalar>(codes.main.indices[1]));
  matrix<Scalar> q(w.rows(), w.cols());
  for (index_t o = 0; o < w.rows(); ++o)
    for (index_t i = 0; i < w.cols(); ++i) {
      q(o, i) = 0;
      for (index_t m = 0; m < 2; ++m)
        q(o, i) += static_cast<Scalar>(codes.main.codebooks[as_size(m)](
            codes.main.indices[as_size(m)](o / codes.main.tile_outputs, i), o % codes.main.tile_outputs));
    }
  c.check("residual.q", q);
}
template void vptq_sweep(oracle_case<float>&);
template void vptq_sweep(oracle_case<double>&);

std::vector<replayer> weight_codes() {
  return {{"gptvq", replay_gptvq<float>, replay_gptvq<double>},
          {"aqlm", replay_aqlm<float>, replay_aqlm<double>},
          {"pv_tuning", replay_pv_tuning<float>, replay_pv_tuning<double>}};
}

}  // namespace oracle
