/// What quantisers share that stand around another one and change its rows: normalised, projected, scaled.
///
///   x [T,D] -> before -> z [T,F] -> the inner quantiser -> q [T,F] -> after -> y [T,D']        ids are the inner one's
///
///   template <Quantizer Inner>
///   class halved : public quantizer_decorator<halved<Inner>, Inner> {
///     friend quantizer_decorator<halved<Inner>, Inner>;
///   public:
///     explicit halved(Inner inner) : quantizer_decorator<halved<Inner>, Inner>(std::move(inner)) {}
///   private:
///     void before(x, z, memory, context) const { z = x / 2; }                // rows of hidden tokens may hold anything
///     void after(q, y, memory, executor) const { y = 2 * q; }
///     void after_backward(dy, dq, tape) { dq = 2 * dy; }                       // and the gradients of its parameters
///     void before_backward(dz, dx, tape) { dx += dz / 2; }
///   };
///
/// One with parameters hides visit_own; one whose y is wider or narrower than x hides outputs(). The inner quantiser is
/// told which tokens are hidden, and learns in after_step from what it saw: z. Its parameters are "quantizer".
#pragma once

#include <sluice/codebook/quantizer.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Inner, typename Own>
struct around_workspace : Own {
  typename Inner::workspace inner;
  matrix_buffer<typename Inner::scalar> z, q;
};
template <typename Inner, typename Own>
struct around_tape : Own {
  typename Inner::tape inner;
  matrix_buffer<typename Inner::scalar> z, q, dz, dq;
};

}  // namespace detail

/// OwnMemory is what before and after need, OwnTape what they and their backward functions do in training.
template <typename Derived, Quantizer Inner, typename OwnMemory = detail::no_memory, typename OwnTape = OwnMemory>
class quantizer_decorator
    : public quantizer_base<Derived, typename Inner::scalar, detail::around_workspace<Inner, OwnMemory>,
                            detail::around_tape<Inner, OwnTape>> {
  using base = quantizer_base<Derived, typename Inner::scalar, detail::around_workspace<Inner, OwnMemory>,
                              detail::around_tape<Inner, OwnTape>>;
  friend base;
  using memory = detail::around_workspace<Inner, OwnMemory>;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = is_causal<Inner>;
  static constexpr bool mixes_tokens = is_token_mixer<Inner>;

  explicit quantizer_decorator(Inner inner) : inner_(std::move(inner)) {}

  index_t inputs() const noexcept { return inner_.inputs(); }
  index_t code_columns() const noexcept { return inner_.code_columns(); }
  index_t codes(index_t column = 0) const noexcept { return inner_.codes(column); }

  void after_step(tape& t) {
    t.record.validate(this);
    inner_.after_step(t.inner);
  }

  template <typename F>
  void for_each_replaced(tape& t, F&& f) {
    inner_.for_each_replaced(t.inner, f);
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t numbers = rows * (inner_.inputs() + inner_.outputs()) * (training ? 2 : 1);
    return base::workspace_bytes(rows, training) + inner_.workspace_bytes(rows, training) +
           numbers * static_cast<index_t>(sizeof(scalar));
  }

  Inner& quantizer() noexcept { return inner_; }
  const Inner& quantizer() const noexcept { return inner_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    Derived::visit_own(self, visit);
    visit("quantizer", self.inner_);
  }

protected:
  template <typename Self, typename Visitor>
  static void visit_own(Self&, Visitor&) {}

private:
  const Derived& self() const noexcept { return static_cast<const Derived&>(*this); }
  Derived& self() noexcept { return static_cast<Derived&>(*this); }

  void prepare(memory& m, const executor_ref& executor) const { inner_.prepare_call(m.inner, executor); }

  void encode_rows(tokens_in<scalar> x, tokens_out<index_t> ids, memory& m, const context_type& context) const {
    m.z.resize(x.rows(), inner_.inputs());
    self().before(x, m.z.map(), m, context);
    inner_.encode_prepared(std::as_const(m.z).map(), ids, m.inner, context);
  }

  void decode_rows(tokens_in<index_t> ids, tokens_out<scalar> y, memory& m, const executor_ref& executor) const {
    m.q.resize(ids.rows(), inner_.outputs());
    inner_.decode_prepared(ids, m.q.map(), m.inner, executor);
    self().after(std::as_const(m.q).map(), y, m, executor);
  }

  void assign(tape& t, const context_type& context) const {
    const index_t tokens = t.kept.rows();
    const context_type visible = t.kept.visible(context);
    t.z.resize(tokens, inner_.inputs());
    t.q.resize(tokens, inner_.outputs());
    self().before(t.kept.x(), t.z.map(), t, visible);
    inner_.forward(std::as_const(t.z).map(), t.q.map(), t.inner, visible);
    std::copy_n(t.inner.ids.data(), tokens * code_columns(), t.ids.data());
  }

  void quantize(tape& t, tokens_out<scalar> y, const context_type& context) const {
    for (index_t i = 0; i < t.ids.rows(); ++i)
      if (t.ids(i, 0) == no_code) std::fill_n(t.q.row(i), t.q.cols(), scalar(0));
    self().after(std::as_const(t.q).map(), y, t, context.executor);
    t.value = t.inner.loss();
  }

  void quantize_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    t.dq.resize(dy.rows(), inner_.outputs());
    t.dz.resize(dy.rows(), inner_.inputs());
    self().after_backward(dy, t.dq.map(), t);
    inner_.backward(std::as_const(t.dq).map(), t.dz.map(), t.inner);
    self().before_backward(std::as_const(t.dz).map(), dx, t);
  }

  Inner inner_;
};

}  // namespace sluice::inline SLUICE_ISA
