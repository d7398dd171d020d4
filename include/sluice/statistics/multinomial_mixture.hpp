/// A softmax-gated mixture of multinomial logistic regressions, fitted by EM: experts that classify.
///
///   P(y = s | x) = sum over k of g_k(x) p_ks(x)        g = softmax of w_k0 + w_k . M(x), p_k = softmax of b_ks0 + b_ks . x
///
///   multinomial_mixture<> model(2, 3, 4);                       // 2 inputs, 3 classes, 4 experts
///   multinomial_mixture<unit_features> model(2, 3, 4);          // a gate that reads x / |x|
///   const em_report report = model.fit(x, labels);
///
/// The last expert's gate and every expert's last class are 0. An iteration: responsibilities r_ik ~ g_k p_k,y; then
/// the gate and every expert by weighted logistic regression (statistics/softmax_regression.hpp); it never lowers the
/// likelihood. Where slopes of some experts vanish, estimates of the plain gate converge more slowly than any power of
/// n; gates of bounded features, M(x) = x / |x| or tanh(x), do not. Throws std::invalid_argument where widths or counts
/// of x and labels do not fit, a label is no class or an option is below 0 or not finite, and in step, fit and improve
/// where x holds NaN or has fewer rows than experts. Everything is in double.
/// Nguyen, Akbarian, Nguyen, Ho 2023, "A General Theory for Softmax Gating Multinomial Logistic Mixture of Experts",
/// arXiv:2310.14188.
#pragma once

#include <sluice/core/random.hpp>
#include <sluice/statistics/softmax_regression.hpp>

#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// What a gate reads of x: all of it, its direction, or its numbers squeezed into -1 .. 1.
struct plain_features {
  static matrix<double> of(const matrix<double>& x) { return x; }
};
struct unit_features {
  static matrix<double> of(const matrix<double>& x) {
    matrix<double> m = x;
    for (index_t i = 0; i < m.rows(); ++i)
      if (const double length = m.row(i).norm(); length > 0) m.row(i) /= length;
    return m;
  }
};
struct squeezed_features {
  static matrix<double> of(const matrix<double>& x) { return x.array().tanh().matrix(); }
};

struct multinomial_mixture_options {
  double penalty = 0;  ///< l1, on the slopes of gate and experts
  em_options em{};
  std::uint64_t seed = 1;  ///< of the experts' first coefficients
};

template <typename GateFeatures = plain_features>
class multinomial_mixture {
public:
  multinomial_mixture(index_t inputs, index_t classes, index_t experts) {
    if (inputs < 1 || classes < 2 || experts < 1)
      throw_invalid("multinomial_mixture needs inputs >= 1, classes >= 2 and experts >= 1, not ", inputs, ", ", classes,
                    " and ", experts);
    gate_ = matrix<double>::Zero(experts - 1, inputs + 1);
    experts_.assign(as_size(experts), matrix<double>::Zero(classes - 1, inputs + 1));
  }

  index_t inputs() const noexcept { return gate_.cols() - 1; }
  index_t classes() const noexcept { return experts_.front().rows() + 1; }
  index_t experts() const noexcept { return static_cast<index_t>(experts_.size()); }
  matrix<double>& gate() noexcept { return gate_; }  ///< [K-1, 1+D], intercepts first
  const matrix<double>& gate() const noexcept { return gate_; }
  matrix<double>& expert(index_t k) noexcept { return experts_[as_size(k)]; }  ///< [S-1, 1+D]
  const matrix<double>& expert(index_t k) const noexcept { return experts_[as_size(k)]; }

  /// g [n,K].
  matrix<double> gate_probabilities(const matrix<double>& x) const {
    detail::check_inputs(name, x, inputs());
    return gate_logs(x).array().exp().matrix();
  }
  /// P [n,S].
  matrix<double> predict(const matrix<double>& x) const {
    const matrix<double> design = detail::with_ones(x), g = gate_probabilities(x);
    matrix<double> p = matrix<double>::Zero(x.rows(), classes());
    for (index_t k = 0; k < experts(); ++k)
      p += g.col(k).asDiagonal() * softmax_log_probabilities(design, expert(k)).array().exp().matrix();
    return p;
  }
  matrix<double> responsibilities(const matrix<double>& x, std::span<const index_t> labels) const {
    check_labels(x, labels);
    return expectations(x, labels);
  }
  double log_likelihood(const matrix<double>& x, std::span<const index_t> labels) const {
    check_labels(x, labels);
    matrix<double> r = log_joint(x, labels);
    return detail::normalize_log_rows(r);
  }

  struct gradient {
    matrix<double> gate;
    std::vector<matrix<double>> experts;
  };
  gradient log_likelihood_gradient(const matrix<double>& x, std::span<const index_t> labels) const {
    const matrix<double> design = detail::with_ones(x), r = responsibilities(x, labels);
    gradient result{(r - gate_probabilities(x)).leftCols(experts() - 1).transpose() * gate_design(x), {}};
    for (index_t k = 0; k < experts(); ++k) {
      const matrix<double> p = softmax_log_probabilities(design, expert(k)).array().exp().matrix();
      const matrix<double> pull = answers_of(labels, r.col(k)) - matrix<double>(r.col(k).asDiagonal() * p);
      result.experts.push_back(pull.leftCols(classes() - 1).transpose() * design);
    }
    return result;
  }

  /// One iteration from where the model stands.
  void step(const matrix<double>& x, std::span<const index_t> labels, double penalty = 0) {
    validate(x, labels, penalty);
    iterate(x, labels, penalty);
  }

  /// EM from where the model stands.
  em_report improve(const matrix<double>& x, std::span<const index_t> labels,
                    const multinomial_mixture_options& o = {}) {
    detail::check_em(name, o.em);
    validate(x, labels, o.penalty);
    return climb(x, labels, o);
  }
  /// EM from a gate that knows nothing and experts drawn by the seed.
  em_report fit(const matrix<double>& x, std::span<const index_t> labels, const multinomial_mixture_options& o = {}) {
    detail::check_em(name, o.em);
    validate(x, labels, o.penalty);
    const random_source random(o.seed);
    gate_.setZero();
    index_t draw = 0;
    for (matrix<double>& e : experts_)
      for (index_t i = 0; i < e.size(); ++i) e.data()[i] = random.normal(random_site("multinomial_mixture"), draw++);
    return climb(x, labels, o);
  }

private:
  static constexpr const char* name = "multinomial_mixture";

  void iterate(const matrix<double>& x, std::span<const index_t> labels, double penalty) {
    const matrix<double> design = detail::with_ones(x), r = expectations(x, labels);
    fit_softmax_regression(gate_design(x), r, penalty, gate_);
    for (index_t k = 0; k < experts(); ++k)
      fit_softmax_regression(design, answers_of(labels, r.col(k)), penalty, expert(k));
  }
  em_report climb(const matrix<double>& x, std::span<const index_t> labels, const multinomial_mixture_options& o) {
    return detail::improve_until_it_stops(
        o.em, [&] { iterate(x, labels, o.penalty); },
        [&] {
          double slopes = gate_.rightCols(inputs()).cwiseAbs().sum();
          for (const matrix<double>& e : experts_) slopes += e.rightCols(inputs()).cwiseAbs().sum();
          return log_likelihood(x, labels) - o.penalty * slopes;
        });
  }
  matrix<double> expectations(const matrix<double>& x, std::span<const index_t> labels) const {
    matrix<double> r = log_joint(x, labels);
    detail::normalize_log_rows(r);
    return r;
  }
  matrix<double> gate_design(const matrix<double>& x) const { return detail::with_ones(GateFeatures::of(x)); }
  matrix<double> gate_logs(const matrix<double>& x) const { return softmax_log_probabilities(gate_design(x), gate_); }
  matrix<double> log_joint(const matrix<double>& x, std::span<const index_t> labels) const {
    const matrix<double> design = detail::with_ones(x);
    matrix<double> logs = gate_logs(x);
    for (index_t k = 0; k < experts(); ++k) {
      const matrix<double> p = softmax_log_probabilities(design, expert(k));
      for (index_t i = 0; i < logs.rows(); ++i) logs(i, k) += p(i, labels[as_size(i)]);
    }
    return logs;
  }
  /// [n,S]: the weight of a row in its class.
  matrix<double> answers_of(std::span<const index_t> labels, const Eigen::VectorXd& weight) const {
    matrix<double> answers = matrix<double>::Zero(weight.size(), classes());
    for (index_t i = 0; i < weight.size(); ++i) answers(i, labels[as_size(i)]) = weight[i];
    return answers;
  }
  void check_labels(const matrix<double>& x, std::span<const index_t> labels) const {
    detail::check_answers(name, x, inputs(), static_cast<index_t>(labels.size()));
    for (std::size_t i = 0; i < labels.size(); ++i)
      if (labels[i] < 0 || labels[i] >= classes())
        throw_invalid(name, ": label ", i, " is ", labels[i], ", there are ", classes(), " classes");
  }
  void validate(const matrix<double>& x, std::span<const index_t> labels, double penalty) const {
    check_labels(x, labels);
    detail::check_data(name, x, inputs(), x.rows(), experts());
    if (!is_at_least(penalty, 0)) throw_invalid(name, " needs a finite penalty >= 0, not ", penalty);
  }

  matrix<double> gate_;
  std::vector<matrix<double>> experts_;
};

}  // namespace sluice::inline SLUICE_ISA
