/// Jitter, the three different things of that name, each a gate around another gate; training only.
///
///   jittered_gate       logits = gate(x u)    u[t,d]: the router's copy of x, experts see x   Switch Transformers
///   added_jitter_gate   logits = gate(x) + u  u[t,e]: what is added is near 1, not 0          FastMoE's Switch gate
///   scaled_jitter_gate  logits = gate(x) u    u[t,e]                                          SparseMixer's baseline
///
///   u = 1 - epsilon + 2 epsilon r, r uniform in (0, 1), drawn at input_jitter_site position t*D + d for the first and
///   at logit_jitter_site position t*E + e for the others
///
/// Gradients pass through the factor: dx += u dx~, dlogits~ = u dlogits. Without training, or with epsilon 0, the inner
/// gate alone runs, bit for bit. Fedus, Zoph, Shazeer 2022, arXiv:2101.03961 (epsilon 0.01).
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>

namespace sluice::inline SLUICE_ISA {

inline constexpr random_site input_jitter_site("jitter.input");
inline constexpr random_site logit_jitter_site("jitter.logits");

namespace detail {

/// f(first row, number of rows) over blocks of rows, each of them `work` (core/executor.hpp).
template <typename Scalar, typename F>
void for_row_blocks(const routing_context<Scalar>& context, index_t rows, index_t work, F&& f) {
  context.executor.parallel_blocks(rows, linear_row_block, work,
                                   [&](index_t begin, index_t end) { f(begin, end - begin); });
}

/// factors = U(1 - epsilon, 1 + epsilon), one for every position of a [rows, cols] matrix.
template <typename Scalar>
void draw_factors(const routing_context<Scalar>& context, random_site site, index_t rows, index_t cols, double epsilon,
                  matrix_buffer<Scalar>& factors) {
  factors.resize(rows, cols);
  for_row_blocks(context, rows, 100 * cols, [&](index_t begin, index_t count) {
    for (index_t i = begin * cols; i < (begin + count) * cols; ++i)
      factors.data()[i] = static_cast<Scalar>(1 - epsilon + 2 * epsilon * context.random.uniform(site, i));
  });
}

inline double checked_epsilon(const char* gate, double epsilon) {
  if (!is_between(epsilon, 0, 1) || epsilon == 1) throw_invalid(gate, " needs 0 <= epsilon < 1, not ", epsilon);
  return epsilon;
}

}  // namespace detail

template <typename Inner>
class jittered_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> factors;  ///< [T,D], empty if there was no jitter
    matrix_buffer<scalar> x;        ///< x u
    matrix_buffer<scalar> dx;       ///< of x u
  };

  /// Throws std::invalid_argument unless 0 <= epsilon < 1.
  explicit jittered_gate(Inner inner, double epsilon = 1e-2)
      : gate_decorator<Inner>(std::move(inner)), epsilon_(detail::checked_epsilon("jittered_gate", epsilon)) {}
  jittered_gate(index_t inputs, index_t experts, double epsilon = 1e-2)
    requires std::constructible_from<Inner, index_t, index_t>
      : jittered_gate(Inner(inputs, experts), epsilon) {}

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    t.factors.clear();
    if (!context.training || epsilon_ == 0) return this->inner().forward(x, context, logits, t.inner);
    detail::draw_factors(context, input_jitter_site, x.rows(), x.cols(), epsilon_, t.factors);
    t.x.resize(x.rows(), x.cols());
    detail::for_row_blocks(context, x.rows(), x.cols(), [&](index_t begin, index_t rows) {
      t.x.map().middleRows(begin, rows) =
          t.factors.map().middleRows(begin, rows).cwiseProduct(x.middleRows(begin, rows));
    });
    this->inner().forward(t.x.map(), context, logits, t.inner);
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    if (t.factors.empty()) return this->inner().backward(x, context, dlogits, t.inner, dx);
    t.dx.set_zero(x.rows(), x.cols());
    this->inner().backward(t.x.map(), context, dlogits, t.inner, t.dx.map());
    detail::for_row_blocks(context, x.rows(), x.cols(), [&](index_t begin, index_t rows) {
      dx.middleRows(begin, rows) +=
          t.factors.map().middleRows(begin, rows).cwiseProduct(t.dx.map().middleRows(begin, rows));
    });
  }

private:
  double epsilon_;
};

namespace detail {

enum class logit_jitter { add, scale };

template <typename Inner, logit_jitter Form>
class logit_jitter_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> factors;  ///< [T,E], empty if there was no jitter
    matrix_buffer<scalar> dlogits;  ///< of the inner gate, if scaled
  };

  /// Throws std::invalid_argument unless 0 <= epsilon < 1.
  explicit logit_jitter_gate(Inner inner, double epsilon = 1e-1)
      : gate_decorator<Inner>(std::move(inner)), epsilon_(checked_epsilon("a gate with jittered logits", epsilon)) {}
  logit_jitter_gate(index_t inputs, index_t experts, double epsilon = 1e-1)
    requires std::constructible_from<Inner, index_t, index_t>
      : logit_jitter_gate(Inner(inputs, experts), epsilon) {}

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    t.factors.clear();
    this->inner().forward(x, context, logits, t.inner);
    if (!context.training || epsilon_ == 0) return;
    draw_factors(context, logit_jitter_site, x.rows(), this->experts(), epsilon_, t.factors);
    if constexpr (Form == logit_jitter::add)
      logits += t.factors.map();
    else
      logits.array() *= t.factors.map().array();
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    if (Form == logit_jitter::add || t.factors.empty()) return this->inner().backward(x, context, dlogits, t.inner, dx);
    t.dlogits.resize(x.rows(), this->experts());
    t.dlogits.map() = t.factors.map().cwiseProduct(dlogits);
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

private:
  double epsilon_;
};

}  // namespace detail

template <typename Inner>
using added_jitter_gate = detail::logit_jitter_gate<Inner, detail::logit_jitter::add>;
template <typename Inner>
using scaled_jitter_gate = detail::logit_jitter_gate<Inner, detail::logit_jitter::scale>;

static_assert(DifferentiableGate<jittered_gate<linear_gate<float>>>);
static_assert(DifferentiableGate<added_jitter_gate<linear_gate<float>>>);
static_assert(DifferentiableGate<scaled_jitter_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
