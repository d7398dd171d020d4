/// Adapters whose matrices are sums of Kronecker products with shared factors: one drawn a batch in training, one made
/// of the averages of all at inference.
///
///   z = x H + b [T,d];   h = dropout(gelu_tanh(z));   u = h H' + b' [T,D];   y = x + alpha u
///   H [D,d] the down map, one for all experts;   H' [d,D] the up map; both sums of Kronecker products with one rule
///   drawn   H', b' those of one expert for the whole batch, drawn evenly          in training
///   soup    of factors and bias averaged by softmax(scores) [E], each apart       at inference
///   mean    of the mean of the experts' matrices
///
///   kronecker_adapters<float> adapters{768, 64, {.experts = 4, .terms = 4, .rank = 8}};
///   later.share_rule(adapters.rule());                                           // one rule for the layers of a model
///
/// A soup averages L and R and not their products, as the paper has it: it is another map than the mean. Gradients
/// reach the rule from both maps and all experts in one place, and a shared one from all layers; whoever owns it shows
/// it to optimisers and files, and it has to stay where it is. With options.redundancy, a training call adds the loss
/// of adapter/redundancy.hpp to tape.loss(), and backward its gradients; sequences are those of the context. Matrices
/// are made anew in each call (adapter/kronecker_sum.hpp) and multiplied by blocks of rows: equal bits for any thread
/// count. A token's output depends on itself alone; padding gets zero, NaN stays in its token; T = 0 is fine. Initial
/// values: rule uniform in +-0.01, factors normal by Glorot with gain sqrt 2, biases and scores zero. Dropout, in
/// training, is that of layer/dropout.hpp, at a site of its own. Jiang, Zheng 2023, arXiv:2303.01239 (MixPHM).
#pragma once

#include <sluice/adapter/kronecker_sum.hpp>
#include <sluice/adapter/redundancy.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/layer/dropout.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

inline constexpr random_site kronecker_adapters_site{"kronecker_adapters.expert"};
inline constexpr random_site kronecker_dropout_site{"kronecker_adapters.dropout"};

/// Which up map a call has.
enum class kronecker_use { drawn, soup, mean };

namespace detail {

template <typename Scalar>
struct kronecker_workspace {
  matrix_buffer<Scalar> down, up;       ///< [D,d], [d,D]
  buffer<Scalar> up_bias;               ///< [D]
  buffer<Scalar> shares;                ///< [E] of the experts in the up map
  buffer<Scalar> left, right, scratch;  ///< averaged factors
  matrix_buffer<Scalar> z, h, u;
};

template <typename Scalar>
struct kronecker_tape : kronecker_workspace<Scalar> {
  matrix_buffer<Scalar> ddown, dup, du, dz;
  buffer<Scalar> dup_bias, dleft, dright, dshares;
  kronecker_use use = kronecker_use::soup;
  redundancy<Scalar> repeated;
  Scalar redundancy_loss = 0;

  Scalar loss() const { return redundancy_loss; }
};

}  // namespace detail

template <FloatOrDouble Scalar>
class kronecker_adapters : public token_mixer<kronecker_adapters<Scalar>, Scalar, detail::kronecker_workspace<Scalar>,
                                              detail::kronecker_tape<Scalar>> {
  using base =
      token_mixer<kronecker_adapters, Scalar, detail::kronecker_workspace<Scalar>, detail::kronecker_tape<Scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::tape;
  static constexpr bool causal = true;
  struct options {
    index_t experts = 4;
    index_t terms = 4;  ///< N, which divides both widths
    index_t rank = 8;
    Scalar scale = 1;  ///< alpha
    kronecker_use in_training = kronecker_use::drawn;
    kronecker_use at_inference = kronecker_use::soup;
    double dropout = 0;     ///< of h; the paper's: 0.5
    Scalar redundancy = 0;  ///< coefficient of the loss; the paper's: 0.2 times 3.9e-3
  };

  /// Throws std::invalid_argument unless all sizes are at least 1, N divides D and d, and scale and redundancy are
  /// finite.
  kronecker_adapters(index_t inputs, index_t bottleneck, options o = {})
      : options_(o), down_shape_{o.terms, inputs, bottleneck, o.rank}, up_shape_{o.terms, bottleneck, inputs, o.rank} {
    down_shape_.validate();
    if (o.experts < 1) throw_invalid("kronecker_adapters needs E >= 1, not ", o.experts);
    if (!is_finite(o.scale) || !is_finite(o.redundancy))
      throw_invalid("kronecker_adapters needs a finite scale and redundancy, not ", o.scale, " and ", o.redundancy);
    detail::checked_dropout("kronecker_adapters", o.dropout);
    const auto glorot = [](index_t a, index_t b) {
      return initial_values::normal(2 / std::sqrt(static_cast<double>(a + b)));
    };
    const index_t n = o.terms, r = o.rank, p = down_shape_.rows(), q = down_shape_.cols();
    own_rule_ = {{n, n, n}, parameter_role::weight, initial_values::uniform(0.01)};
    down_left_ = {{n, p, r}, parameter_role::weight, glorot(p, r)};
    down_right_ = {{n, r, q}, parameter_role::weight, glorot(r, q)};
    down_bias_ = {{bottleneck}, parameter_role::vector};
    up_left_ = {{o.experts, n, q, r}, parameter_role::weight, glorot(q, r)};
    up_right_ = {{o.experts, n, r, p}, parameter_role::weight, glorot(r, p)};
    up_bias_ = {{o.experts, inputs}, parameter_role::vector};
    scores_ = {{o.experts}, parameter_role::vector};
  }

  index_t inputs() const noexcept { return down_shape_.inputs; }
  index_t bottleneck() const noexcept { return down_shape_.outputs; }
  index_t experts() const noexcept { return options_.experts; }
  const options& settings() const noexcept { return options_; }

  /// S [N,N,N]: this layer's own, or the one that it shares.
  parameter<Scalar>& rule() noexcept { return shared_rule_ == nullptr ? own_rule_ : *shared_rule_; }
  const parameter<Scalar>& rule() const noexcept { return shared_rule_ == nullptr ? own_rule_ : *shared_rule_; }
  /// From now on the rule is another layer's, or a model's. Throws std::invalid_argument for one of another size.
  void share_rule(parameter<Scalar>& rule) {
    if (rule.size() != own_rule_.size())
      throw_invalid("a rule of ", rule.size(), " numbers cannot be shared by a layer of N = ", options_.terms);
    shared_rule_ = &rule;
  }

  parameter<Scalar>& down_left() noexcept { return down_left_; }
  parameter<Scalar>& down_right() noexcept { return down_right_; }
  parameter<Scalar>& down_bias() noexcept { return down_bias_; }
  parameter<Scalar>& up_left() noexcept { return up_left_; }    ///< [E,N,d/N,R]
  parameter<Scalar>& up_right() noexcept { return up_right_; }  ///< [E,N,R,D/N]
  parameter<Scalar>& up_bias() noexcept { return up_bias_; }    ///< [E,D]
  parameter<Scalar>& scores() noexcept { return scores_; }      ///< [E] of the soup

  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t maps = 2 * inputs() * bottleneck() * (training ? 2 : 1);
    return (maps + rows * (inputs() + 2 * bottleneck()) * (training ? 3 : 1)) * static_cast<index_t>(sizeof(Scalar));
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if (self.shared_rule_ == nullptr) visit("rule", self.own_rule_);
    visit("down_left", self.down_left_), visit("down_right", self.down_right_), visit("down_bias", self.down_bias_);
    visit("up_left", self.up_left_), visit("up_right", self.up_right_), visit("up_bias", self.up_bias_);
    visit("scores", self.scores_);
  }

private:
  static constexpr index_t rows_per_task = 32;
  using factors = kronecker_factors<const Scalar>;

  template <typename Memory>
  void mix(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context) const {
    if (shared_rule_ != nullptr) check_initialized(*shared_rule_, "rule");
    const kronecker_use use = context.training ? options_.in_training : options_.at_inference;
    make_maps(use, context, m);
    const index_t width = inputs(), hidden = bottleneck();
    m.z.resize(x.rows(), hidden), m.h.resize(x.rows(), hidden), m.u.resize(x.rows(), width);
    context.executor.parallel_blocks(x.rows(), rows_per_task, width * hidden / 2, [&](index_t begin, index_t end) {
      const index_t count = end - begin;
      kernel::multiply_nn(count, hidden, width, x.data() + begin * x.outerStride(), x.outerStride(), m.down.data(),
                          hidden, m.z.row(begin), hidden);
      for (index_t t = begin; t < end; ++t) {
        kernel::add_scaled(Scalar(1), down_bias_.data(), m.z.row(t), hidden);
        kernel::transform(
            hidden, [](const kernel::simd<Scalar>& z) { return detail::value_of<gelu_tanh, Scalar>(z); }, m.h.row(t),
            m.z.row(t));
      }
      drop_out(begin, end, m.h, context);
      kernel::multiply_nn(count, width, hidden, m.h.row(begin), hidden, m.up.data(), width, m.u.row(begin), width);
      for (index_t t = begin; t < end; ++t) {
        kernel::add_scaled(Scalar(1), m.up_bias.data(), m.u.row(t), width);
        Scalar* const out = y.data() + t * y.outerStride();
        std::copy_n(x.data() + t * x.outerStride(), width, out);
        kernel::add_scaled(options_.scale, m.u.row(t), out, width);
      }
    });
    if constexpr (std::same_as<Memory, tape>) {
      m.use = use;
      const bool has_loss = context.training && options_.redundancy != 0;
      m.redundancy_loss =
          has_loss ? m.repeated.evaluate(m.u.map(), x, m.kept.counts(), sequences_of(context), options_.redundancy)
                   : Scalar(0);
    }
  }

  /// Rows of h, or of its gradient: the draws of a call stay the same.
  void drop_out(index_t begin, index_t end, matrix_buffer<Scalar>& rows, const context_type& context) const {
    if (!context.training || options_.dropout == 0) return;
    for (index_t i = begin * rows.cols(); i < end * rows.cols(); ++i)
      rows.data()[i] *=
          detail::dropout_factor<Scalar>(context.random, kronecker_dropout_site, i, options_.dropout);
  }

  void mix_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    const executor_ref& executor = t.context.executor;
    const auto x = t.kept.x();
    const index_t tokens = x.rows(), width = inputs(), hidden = bottleneck();
    t.du.set_zero(tokens, width), t.dz.resize(tokens, hidden);
    dx = dy;
    if (t.redundancy_loss != 0) t.repeated.backward(t.du.map(), dx);
    executor.parallel_blocks(tokens, rows_per_task, width * hidden / 2, [&](index_t begin, index_t end) {
      const index_t count = end - begin;
      for (index_t r = begin; r < end; ++r)
        kernel::add_scaled(options_.scale, dy.data() + r * dy.outerStride(), t.du.row(r), width);
      kernel::multiply_nt(count, hidden, width, t.du.row(begin), width, t.up.data(), width, t.dz.row(begin), hidden);
      drop_out(begin, end, t.dz, t.context);
      for (index_t r = begin; r < end; ++r)
        kernel::transform(
            hidden,
            [](const kernel::simd<Scalar>& dh, const kernel::simd<Scalar>& z) {
              return dh * detail::derivative_of<gelu_tanh, Scalar>(z);
            },
            t.dz.row(r), t.dz.row(r), t.z.row(r));
      kernel::multiply_nt(count, width, hidden, t.dz.row(begin), hidden, t.down.data(), hidden,
                          dx.data() + begin * dx.outerStride(), dx.outerStride(), kernel::write::accumulate);
    });
    t.ddown.resize(width, hidden), t.dup.resize(hidden, width);
    multiply_transposed(x, std::as_const(t.dz).map(), t.ddown, executor);
    multiply_transposed(std::as_const(t.h).map(), std::as_const(t.du).map(), t.dup, executor);
    add_column_sums<Scalar>(std::as_const(t.dz).map(), down_bias_.gradient());
    t.dup_bias.assign(width, 0);
    add_column_sums<Scalar>(std::as_const(t.du).map(), t.dup_bias.span());
    add_kronecker_gradients<Scalar>(
        down_shape_, down(), Scalar(1), t.ddown.data(),
        {rule().gradient().data(), down_left_.gradient().data(), down_right_.gradient().data()}, t.scratch);
    add_up_gradients(t);
  }

  // ---- the maps -----------------------------------------------------------------------------------------------------

  factors down() const { return {rule().data(), down_left_.data(), down_right_.data()}; }
  /// Factors of expert e.
  factors up(index_t e) const {
    return {rule().data(), up_left_.data() + e * up_shape_.left_size(), up_right_.data() + e * up_shape_.right_size()};
  }

  void make_maps(kronecker_use use, const context_type& context, auto& m) const {
    m.down.set_zero(inputs(), bottleneck()), m.up.set_zero(bottleneck(), inputs());
    m.up_bias.assign(inputs(), 0);
    add_kronecker_sum<Scalar>(down_shape_, down(), Scalar(1), m.down.data(), m.scratch);
    find_shares(use, context, m.shares);
    for_each_share(m.shares, [&](index_t e, Scalar share) {
      kernel::add_scaled(share, up_bias_.data() + e * inputs(), m.up_bias.data(), inputs());
      if (use != kronecker_use::soup) add_kronecker_sum<Scalar>(up_shape_, up(e), share, m.up.data(), m.scratch);
    });
    if (use != kronecker_use::soup) return;
    m.left.assign(up_shape_.left_size(), 0), m.right.assign(up_shape_.right_size(), 0);
    for_each_share(m.shares, [&](index_t e, Scalar share) {
      kernel::add_scaled(share, up(e).left, m.left.data(), m.left.size());
      kernel::add_scaled(share, up(e).right, m.right.data(), m.right.size());
    });
    add_kronecker_sum<Scalar>(up_shape_, {rule().data(), m.left.data(), m.right.data()}, Scalar(1), m.up.data(),
                              m.scratch);
  }

  void find_shares(kronecker_use use, const context_type& context, buffer<Scalar>& shares) const {
    shares.assign(experts(), use == kronecker_use::mean ? 1 / static_cast<Scalar>(experts()) : Scalar(0));
    if (use == kronecker_use::soup) kernel::softmax(scores_.data(), shares.data(), experts());
    if (use == kronecker_use::drawn) {
      const double u = context.random.uniform(kronecker_adapters_site, 0) * static_cast<double>(experts());
      shares[(std::min)(static_cast<index_t>(u), experts() - 1)] = 1;
    }
  }

  template <typename F>
  static void for_each_share(const buffer<Scalar>& shares, F&& f) {
    for (index_t e = 0; e < shares.size(); ++e)
      if (shares[e] != 0) f(e, shares[e]);
  }

  /// From dH' and db' to the experts' factors, the rule and the scores.
  void add_up_gradients(tape& t) {
    Scalar* const drule = rule().gradient().data();
    const auto left_of = [&](index_t e) { return up_left_.gradient().data() + e * up_shape_.left_size(); };
    const auto right_of = [&](index_t e) { return up_right_.gradient().data() + e * up_shape_.right_size(); };
    for_each_share(t.shares, [&](index_t e, Scalar share) {
      kernel::add_scaled(share, t.dup_bias.data(), up_bias_.gradient().data() + e * inputs(), inputs());
      if (t.use != kronecker_use::soup)
        add_kronecker_gradients<Scalar>(up_shape_, up(e), share, t.dup.data(), {drule, left_of(e), right_of(e)},
                                        t.scratch);
    });
    if (t.use != kronecker_use::soup) return;
    t.dleft.assign(up_shape_.left_size(), 0), t.dright.assign(up_shape_.right_size(), 0);
    add_kronecker_gradients<Scalar>(up_shape_, {rule().data(), t.left.data(), t.right.data()}, Scalar(1), t.dup.data(),
                                    {drule, t.dleft.data(), t.dright.data()}, t.scratch);
    t.dshares.assign(experts(), 0);
    Scalar inner = 0;
    for_each_share(t.shares, [&](index_t e, Scalar share) {
      kernel::add_scaled(share, t.dleft.data(), left_of(e), t.dleft.size());
      kernel::add_scaled(share, t.dright.data(), right_of(e), t.dright.size());
      t.dshares[e] = kernel::dot(t.dleft.data(), up(e).left, t.dleft.size()) +
                     kernel::dot(t.dright.data(), up(e).right, t.dright.size()) +
                     kernel::dot(t.dup_bias.data(), up_bias_.data() + e * inputs(), inputs());
      inner += share * t.dshares[e];
    });
    for_each_share(t.shares,
                   [&](index_t e, Scalar share) { scores_.gradient()[as_size(e)] += share * (t.dshares[e] - inner); });
  }

  /// product [a's width, b's width] = a^T b.
  static void multiply_transposed(tokens_in<Scalar> a, tokens_in<Scalar> b, matrix_buffer<Scalar>& product,
                                  const executor_ref& executor) {
    executor.parallel_blocks(
        product.rows(), rows_per_task, a.rows() * product.cols() / 4, [&](index_t begin, index_t end) {
          kernel::multiply_tn(end - begin, product.cols(), a.rows(), a.data() + begin, a.outerStride(), b.data(),
                              b.outerStride(), product.row(begin), product.cols());
        });
  }

  static index_t sequences_of(const context_type& context) {
    const auto borders = context.sequence_borders();
    return borders.empty() ? 1 : static_cast<index_t>(borders.size()) - 1;
  }

  options options_;
  kronecker_shape down_shape_;
  kronecker_shape up_shape_;
  parameter<Scalar> own_rule_;
  parameter<Scalar>* shared_rule_ = nullptr;
  parameter<Scalar> down_left_, down_right_, down_bias_;
  parameter<Scalar> up_left_, up_right_, up_bias_, scores_;
};

template <FloatOrDouble Scalar>
using mixphm = kronecker_adapters<Scalar>;

static_assert(TrainableLayer<kronecker_adapters<float>>);

}  // namespace sluice::inline SLUICE_ISA
