/// What a mixture of experts would cost and reach before anybody trains it: a joint scaling law of active parameters,
/// training tokens and experts.
///
///   L(N,D,E) = a e^delta N^(alpha + gamma ln e) + b e^omega D^(beta + zeta ln e) + c              nats a token
///   1/e = 1 / (E - 1 + (1/start - 1/most)^-1) + 1/most      experts that count; e = start for a dense model, E = 1
///
///   const joint_scaling_law law;
///   law.loss(1e9, 2e10, 8);                       2.51      N active parameters, D training tokens
///   law.optimum(1e21, 8);                         N and D that make the most of 6 N D = 1e21 operations
///
/// At fixed E it is m N^mu + n D^nu + c, so the best N is ((nu n / (mu m)) (F/6)^nu)^(1/(mu + nu)), D = F / (6 N).
/// Fitted to top-1 mixtures of E <= 32 with N up to 2.7e9, all parameters up to 5e9 and D up to 8e10; embedding and
/// unembedding count as parameters. Further out, and beyond some hundred tokens a parameter, it is a guess. Numbers
/// below 1 throw std::invalid_argument. Ludziejewski et al. 2025, "Joint MoE Scaling Laws: Mixture of Experts Can Be
/// Memory Efficient", arXiv:2502.05172.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/types.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

/// Parameters of a decoder of blocks of width d whose feed-forward experts are gated, of hidden width 3 d.
struct mixture_parameters {
  index_t width = 1024;
  index_t blocks = 16;
  index_t experts = 1;
  index_t vocabulary = 50257;

  /// N: those that a token passes, for top-1 routing.
  double active() const { return embeddings() + 13 * block(); }
  /// Those that memory holds.
  double total() const { return embeddings() + (4 + 9 * static_cast<double>(experts)) * block(); }

private:
  double embeddings() const { return 2.0 * static_cast<double>(width) * static_cast<double>(vocabulary); }
  double block() const { return static_cast<double>(blocks) * static_cast<double>(width) * static_cast<double>(width); }
};

struct joint_scaling_law {
  double a = 35.91, alpha = -0.1889, delta = -0.2285, gamma = 0.0098;
  double b = 35.98, beta = -0.1775, omega = 0.5529, zeta = -0.0259;
  double c = 1.3637;
  double start = 2.0732, most = 290.4521;

  /// e
  double counted_experts(double experts) const {
    check_positive(experts, "experts");
    const double offset = 1 / (1 / start - 1 / most);
    return 1 / (1 / (experts - 1 + offset) + 1 / most);
  }

  /// m N^mu + n D^nu + c for a number of experts.
  struct of_experts {
    double m, mu, n, nu, c;
  };
  of_experts at(double experts) const {
    const double e = counted_experts(experts), size = std::log(e);
    return {a * std::pow(e, delta), alpha + gamma * size, b * std::pow(e, omega), beta + zeta * size, c};
  }

  double loss(double active_parameters, double tokens, double experts) const {
    check_positive(active_parameters, "active parameters");
    check_positive(tokens, "tokens");
    const of_experts law = at(experts);
    return law.m * std::pow(active_parameters, law.mu) + law.n * std::pow(tokens, law.nu) + law.c;
  }

  struct model_size {
    double active_parameters, tokens;
  };
  /// The best use of so many floating-point operations of training, 6 N D.
  model_size optimum(double operations, double experts) const {
    check_positive(operations, "operations");
    const of_experts law = at(experts);
    const double ratio = law.nu * law.n / (law.mu * law.m);
    const double parameters = std::pow(ratio * std::pow(operations / 6, law.nu), 1 / (law.mu + law.nu));
    return {parameters, operations / (6 * parameters)};
  }

private:
  static void check_positive(double number, const char* what) {
    if (!(number >= 1)) throw_invalid("the scaling law needs a number of ", what, " >= 1, not ", number);
  }
};

}  // namespace sluice::inline SLUICE_ISA
