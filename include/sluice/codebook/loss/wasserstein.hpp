/// The exact Wasserstein distance between weighted codes and the tokens of the batch: the regulariser of VQ-WAE.
///
///   for each of P problems, with n tokens and weights w = softmax(phi):
///     OT = minimise sum over k, t of plan[k,t] |x_t - c_k|^2    plan >= 0, its rows add up to w, its columns to 1/n
///   loss = sum over problems of  beta OT + kl / C sum over k of w_k log(w_k C)
///   dx_t += 2 beta sum over k of plan[k,t] (x_t - c_k), dc_k the opposite
///   dphi    through dw = beta potentials of the codes + kl / C (log(w C) + 1)
///
/// P = 1 is the global form: all tokens and all codes in one problem. Local: token t belongs to problem t mod P, so the
/// positions of an image are adjacent and images follow each other; each position has weights of its own. Without
/// learned weights w = 1/C and the KL term is 0. Losses are summed over problems, as published. The KL term keeps
/// weights from vanishing, with which their codes would freeze.
///
///   vector_quantizer wae{learned_codes<float>{512, 64}, wasserstein_loss<float>{512, {.kl = 0.1}}};
///
/// (its only loss, beside straight_through and the nearest code.) The plan is exact
/// (codebook/loss/exact_transport.hpp), in double: n (C^2 + n) work a problem, for some thousand tokens. Several
/// problems run in parallel. A problem without tokens counts for nothing. Where several plans are best, dx and dw are
/// those of one of them. Parameter: "weights" phi [P,C].
/// Vuong et al. 2023, "Vector Quantized Wasserstein Auto-Encoder", section 3.
#pragma once

#include <sluice/codebook/loss/exact_transport.hpp>
#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <cmath>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct wasserstein_options {
  index_t problems = 1;
  double beta = 1;
  double kl = 0.1;
  bool learned_weights = true;
};

template <FloatOrDouble Scalar>
class wasserstein_loss {
public:
  using role = loss_role;
  static constexpr const char* name = "wasserstein";
  static constexpr bool causal = false;

  /// One of the P problems.
  struct problem {
    buffer<index_t> tokens;
    matrix_buffer<double> cost;  ///< [n,C]
    buffer<double> amounts;      ///< [C] n w
    buffer<Scalar> weights;      ///< [C] w
    exact_transport transport;
    double value = 0;

    void reserve(index_t n, index_t codes) {
      tokens.reserve(n);
      cost.reserve(n, codes);
      amounts.reserve(codes);
      weights.reserve(codes);
      transport.reserve(n, codes);
    }
  };
  template <typename>
  struct memory {
    std::vector<problem> problems;
  };

  /// Throws std::invalid_argument unless C, P >= 1 and beta, kl >= 0.
  explicit wasserstein_loss(index_t codes, wasserstein_options o = {}) : options_(o) {
    if (codes < 1 || o.problems < 1 || !is_at_least(o.beta, 0.0) || !is_at_least(o.kl, 0.0))
      throw_invalid("wasserstein_loss needs C, P >= 1 and beta, kl >= 0, not ", codes, ", ", o.problems, ", ", o.beta,
                    " and ", o.kl);
    weights_ = {{o.problems, codes}, o.learned_weights ? parameter_role::vector : parameter_role::state};
  }

  const wasserstein_options& options() const noexcept { return options_; }
  parameter<Scalar>& weights() noexcept { return weights_; }

  Scalar value(const quantized_batch<Scalar>& batch, memory<Scalar>& m, bool) const {
    check_call(batch);
    m.problems.resize(as_size(options_.problems));
    const index_t work = batch.tokens() * batch.code_count() * batch.code_count() / options_.problems;
    batch.context.executor.parallel_blocks(options_.problems, 1, work,
                                           [&](index_t p, index_t) { solve(batch, p, m.problems[as_size(p)]); });
    double sum = 0;
    for (const problem& p : m.problems) sum += p.value;
    return static_cast<Scalar>(sum);
  }

  /// Adds to dx [T,D], to the gradient of the weights and, if it has rows, to dcodes [C,D].
  void backward(const quantized_batch<Scalar>& batch, tokens_out<Scalar> dx, matrix_map<Scalar> dcodes,
                memory<Scalar>& m) {
    for (const problem& p : m.problems) {
      const matrix_buffer<double>& flow = p.transport.flow();
      const double share = 2 * options_.beta / static_cast<double>(std::max<index_t>(1, p.tokens.size()));
      for (index_t i = 0; i < p.tokens.size(); ++i)
        for (index_t k = 0; k < batch.code_count(); ++k) {
          if (flow(k, i) == 0) continue;
          const index_t t = p.tokens[i];
          const auto pull = static_cast<Scalar>(share * flow(k, i));
          Scalar* d = dx.data() + t * dx.outerStride();
          kernel::add_scaled(pull, batch.row(t), d, batch.width());
          kernel::add_scaled(-pull, batch.code(k), d, batch.width());
          if (dcodes.rows() == 0) continue;
          d = dcodes.data() + k * batch.width();
          kernel::add_scaled(pull, batch.code(k), d, batch.width());
          kernel::add_scaled(-pull, batch.row(t), d, batch.width());
        }
    }
    if (!weights_.is_learned()) return;
    const auto codes = static_cast<double>(batch.code_count());
    for (index_t p = 0; p < options_.problems; ++p) {
      const problem& one = m.problems[as_size(p)];
      if (one.tokens.empty()) continue;
      const auto slope = [&](index_t k) {
        const auto w = static_cast<double>(one.weights[k]);
        return options_.beta * one.transport.potential()[k] +
               (w > 0 ? options_.kl / codes * (std::log(w * codes) + 1) : 0);
      };
      double mean = 0;
      for (index_t k = 0; k < batch.code_count(); ++k) mean += static_cast<double>(one.weights[k]) * slope(k);
      Scalar* d = weights_.gradient().data() + p * batch.code_count();
      for (index_t k = 0; k < batch.code_count(); ++k)
        d[k] += static_cast<Scalar>(static_cast<double>(one.weights[k]) * (slope(k) - mean));
    }
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weights", self.weights_);
  }

private:
  void check_call(const quantized_batch<Scalar>& batch) const {
    if (weights_.cols() != batch.code_count())
      throw_invalid("wasserstein_loss of ", weights_.cols(), " codes cannot weigh a codebook of ", batch.code_count());
    if (batch.tokens() % options_.problems != 0)
      throw_invalid("wasserstein_loss has ", options_.problems, " positions, of which ", batch.tokens(),
                    " tokens are no multiple");
  }

  void solve(const quantized_batch<Scalar>& batch, index_t place, problem& p) const {
    const index_t codes = batch.code_count(), width = batch.width();
    p.reserve(batch.tokens() / options_.problems, codes);
    p.tokens.clear();
    for (index_t t = place; t < batch.tokens(); t += options_.problems)
      if (batch.has_code(t)) p.tokens.push_back(t);
    p.weights.resize(codes);
    kernel::softmax(weights_.data() + place * codes, p.weights.data(), codes);
    p.value = 0;
    const index_t n = p.tokens.size();
    if (n == 0) return;
    for (const Scalar weight : p.weights) {
      const auto w = static_cast<double>(weight);
      if (w > 0) p.value += options_.kl / static_cast<double>(codes) * w * std::log(w * static_cast<double>(codes));
    }
    p.cost.resize(n, codes);
    for (index_t i = 0; i < n; ++i) {
      const Scalar* x = batch.row(p.tokens[i]);
      for (index_t k = 0; k < codes; ++k) {
        const Scalar* c = batch.code(k);
        double sum = 0;
        for (index_t d = 0; d < width; ++d) {
          const double difference = static_cast<double>(x[d]) - static_cast<double>(c[d]);
          sum += difference * difference;
        }
        p.cost(i, k) = sum;
      }
    }
    p.amounts.resize(codes);
    for (index_t k = 0; k < codes; ++k) p.amounts[k] = static_cast<double>(n) * static_cast<double>(p.weights[k]);
    p.transport.solve(p.cost, p.amounts);
    p.value += options_.beta * p.transport.total() / static_cast<double>(n);
  }

  wasserstein_options options_;
  parameter<Scalar> weights_;
};

}  // namespace sluice::inline SLUICE_ISA
