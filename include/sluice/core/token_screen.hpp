/// Keeps what must reach nobody away from who reads tokens: padding, and tokens that hold NaN.
///
/// Such rows of x [T,D] may hold anything. Their results have gradient 0, yet sums over tokens would spread it, for
/// 0 * NaN is NaN. So whoever reads tokens reads a copy of x with zeros in those rows, forward and backward; if there
/// are none, x itself. A token is invalid if it holds NaN, or if its results do: overflow can make NaN of numbers.
/// Where NaN in a token is certain to show in its results (shows_nan, core/concepts.hpp), x itself is not searched for
/// it. Memory for the copy is set aside at once, so that the first NaN allocates nothing.
///
///   t.screen.score(x, context, [&](tokens_in<scalar> seen) { gate.forward(seen, context, logits, t.gate); },
///                  [&](index_t token) { return any_nan(t.logits.row(token), experts); });
///   if (t.screen.is_routed(token)) ...                              gate.backward(t.screen.of(x), ...)
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/numeric.hpp>

#include <algorithm>
#include <concepts>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class token_screen {
public:
  using view = Eigen::Ref<const matrix<Scalar>, 0, Eigen::OuterStride<>>;

  /// Runs f(seen) on x without what is hidden. Should has_nan(token) then be true of a token that f has seen, this
  /// token is hidden too and f runs once more, so that nothing it keeps holds NaN. has_nan is called by many threads at
  /// once. Where it is true of every token that holds NaN, results_show_nan says so: then it alone is asked.
  template <typename F, typename HasNan>
  void score(tokens_in<Scalar> x, const routing_context<Scalar>& context, F&& f, HasNan&& has_nan,
             bool results_show_nan = false) {
    hide(x, context, !results_show_nan);
    f(of(x));
    const index_t before = hidden_;
    classify(x, context, [&](index_t token) {
      return is_routed(token) && has_nan(token) ? state::invalid : state_[token];
    });
    if (hidden_ != before) f(of(x));
  }

  /// Hides padding and rows that hold NaN.
  void hide(tokens_in<Scalar> x, const routing_context<Scalar>& context) { hide(x, context, true); }

  /// What may be seen of this x, the one that was given last: the copy, or x itself.
  view of(tokens_in<Scalar> x) const { return hidden_ == 0 ? view(x) : view(copy_.map()); }

  /// The context in which all that is hidden is padding: for gates that look at several tokens at once.
  routing_context<Scalar> visible(const routing_context<Scalar>& context) const {
    routing_context<Scalar> other = context;
    if (has_invalid_) other.token_mask = visible_.span();
    return other;
  }

  bool is_routed(index_t token) const noexcept { return state_[token] == state::routed; }
  bool is_invalid(index_t token) const noexcept { return state_[token] == state::invalid; }

  /// Writes NaN into the rows of invalid tokens: what they were scored with was not theirs.
  void spoil_invalid(matrix_buffer<Scalar>& results) const { fill(results, state::invalid, quiet_nan<Scalar>()); }

  /// Writes zeros into the rows of all that is hidden: gradients that must reach nothing.
  void clear_hidden(matrix_buffer<Scalar>& gradients) const {
    fill(gradients, state::padding, Scalar(0));
    fill(gradients, state::invalid, Scalar(0));
  }

private:
  enum class state : std::uint8_t { routed, padding, invalid };

  static const Scalar* row(tokens_in<Scalar> x, index_t token) { return x.data() + token * x.outerStride(); }

  void hide(tokens_in<Scalar> x, const routing_context<Scalar>& context, bool searches) {
    state_.resize(x.rows());
    copy_.resize(x.rows(), x.cols());
    visible_.resize(x.rows());
    classify(x, context, [&](index_t token) {
      if (context.is_padding(token)) return state::padding;
      return searches && any_nan(row(x, token), x.cols()) ? state::invalid : state::routed;
    });
  }

  template <typename StateOf>
  void classify(tokens_in<Scalar> x, const routing_context<Scalar>& context, StateOf&& state_of) {
    context.executor.parallel_each(x.rows(), x.cols(), [&](index_t token) { state_[token] = state_of(token); });
    hidden_ = x.rows() - std::count(state_.begin(), state_.end(), state::routed);
    has_invalid_ = hidden_ != 0 && std::find(state_.begin(), state_.end(), state::invalid) != state_.end();
    if (hidden_ == 0) return;
    if (has_invalid_)
      for (index_t token = 0; token < x.rows(); ++token) visible_[token] = is_routed(token);
    context.executor.parallel_each(x.rows(), x.cols(), [&](index_t token) {
      if (is_routed(token))
        std::copy_n(row(x, token), x.cols(), copy_.row(token));
      else
        std::fill_n(copy_.row(token), x.cols(), Scalar(0));
    });
  }

  void fill(matrix_buffer<Scalar>& m, state which, Scalar value) const {
    if (hidden_ == 0) return;
    for (index_t token = 0; token < m.rows(); ++token)
      if (state_[token] == which) std::fill_n(m.row(token), m.cols(), value);
  }

  buffer<state> state_;
  buffer<std::uint8_t> visible_;  ///< [T] 1 where the token is routed; set where one is invalid
  index_t hidden_ = 0;
  bool has_invalid_ = false;
  matrix_buffer<Scalar> copy_;
};

}  // namespace sluice::inline SLUICE_ISA
