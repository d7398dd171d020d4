// Experts whose weights are products of smaller ones, forward, 512 tokens: MPOE's matrices, computed and multiplied,
// and a multilinear mixture with its gates.
#include <sluice/expert/factorized/matrix_product.hpp>
#include <sluice/gate/centred.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/multilinear/multilinear_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include <string>
#include <utility>
#include <vector>

#include "forward_case.hpp"

namespace bench {

namespace {

template <typename Layer>
void forward_case(session& s, const std::string& name, Layer layer, index_t rows, const work& done, int threads) {
  const std::string title = forward_title(name, rows, threads);
  if (!s.wants(title)) return;
  sluice::initialize(layer, 21);
  race_layer(s, title, forward_record(name, threads, done), random_batches(rows, layer.inputs(), 22), layer);
}

/// The two products of every pair of the centre's indices, then the experts; weights are read, matrices written and
/// read.
void mpoe_case(session& s, const std::vector<index_t>& hidden, const std::vector<index_t>& width, std::int64_t rows,
               int threads) {
  constexpr index_t experts = 8, top_k = 2;
  sluice::matrix_product_bank<float> bank{{experts, hidden, width}};
  const auto& weights = std::as_const(bank).weights();
  const double matrices = 2.0 * static_cast<double>(weights.hidden() * weights.inputs());
  const auto rebuilt = static_cast<double>(2 * experts * weights.up().pairs() * weights.up().pair_work());
  const work done{2 * rebuilt + 2 * matrices * static_cast<double>(rows * top_k),
                  4 * (static_cast<double>(sluice::parameter_count(weights)) + 2 * experts * matrices)};
  const index_t D = weights.inputs();
  forward_case(s, "factorized_mpoe",
               sluice::moe_layer{sluice::top_k_router<float>{D, experts, {.top_k = top_k}}, std::move(bank)}, rows,
               done, threads);
}

void multilinear_case(session& s, index_t D, index_t experts, index_t rank, std::int64_t rows, int threads) {
  using gate = sluice::centred_gate<sluice::linear_gate<float>>;
  using router = sluice::dense_entmax_router<float, gate>;
  sluice::multilinear_layer<router> layer{{router{D, experts}},
                                          {{experts}, D, D, sluice::elementwise_contraction{1, rank}}};
  const auto weights = static_cast<double>(rank * (experts + 2 * D) + experts * D);
  forward_case(s, "factorized_multilinear", std::move(layer), rows,
               {2 * weights * static_cast<double>(rows), 4 * weights}, threads);
}

}  // namespace

void factorized_cases(session& s) {
  const std::int64_t rows = s.asked.smoke ? 16 : 512;
  const auto run = [&](int threads) {
    if (s.asked.smoke) {
      mpoe_case(s, {2, 2, 2}, {2, 3, 2}, rows, threads);
      multilinear_case(s, 24, 8, 16, rows, threads);
    } else {
      mpoe_case(s, {4, 4, 8, 6, 4}, {3, 4, 4, 4, 4}, rows, threads);
      multilinear_case(s, 768, 128, 512, rows, threads);
    }
  };
  run(s.asked.threads);
  if (s.asked.threads > 1 && !s.asked.quick) run(1);
}

}  // namespace bench
