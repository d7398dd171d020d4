/// A quantiser of another width than its model: a projection in front and one behind, as most codecs have them.
///
///   z = project_in(x [T,D]) [T,F]     q, ids = inner(z)     y = project_out(q) [T,D']    decode ends with project_out
///
///   projected_quantizer fsq{512, finite_scalar_quantizer<float>{{8, 5, 5, 5}}};
///   projected_quantizer lfq{512, lookup_free_quantizer<float>{18}, {.bias = false}};
///   projected_quantizer own{my_layer{512, 8}, quantiser, my_layer{8, 512}};
///
/// The first two have linear layers to and from the inner quantiser's width; a projection of your own is any
/// TrainableLayer that needs no more of the context than the token mask and the executor. Gradients go through both as
/// through layers: the one in front has those of the inner quantiser's losses too. Parameters: "project_in",
/// "project_out", "quantizer". Everything else: codebook/structure/quantizer_decorator.hpp.
#pragma once

#include <sluice/codebook/structure/quantizer_decorator.hpp>
#include <sluice/layer/linear.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Memory>
struct projection_memories {
  Memory in, out;
};

}  // namespace detail

template <Quantizer Inner, TrainableLayer Projection = linear_layer<typename Inner::scalar>>
class projected_quantizer : public quantizer_decorator<projected_quantizer<Inner, Projection>, Inner,
                                                       detail::projection_memories<typename Projection::workspace>,
                                                       detail::projection_memories<typename Projection::tape>> {
  using base =
      quantizer_decorator<projected_quantizer, Inner, detail::projection_memories<typename Projection::workspace>,
                          detail::projection_memories<typename Projection::tape>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  using linear_options = typename linear_layer<scalar>::options;
  static constexpr bool causal = is_causal<Projection> && is_causal<Inner>;
  static constexpr bool mixes_tokens = is_token_mixer<Projection> || is_token_mixer<Inner>;

  /// Linear projections from this width and back. Throws std::invalid_argument unless it is at least 1.
  projected_quantizer(index_t width, Inner quantizer, linear_options o = {})
      : projected_quantizer(linear_layer<scalar>(width, quantizer.inputs(), o), quantizer,
                            linear_layer<scalar>(quantizer.outputs(), width, o)) {}
  /// Throws std::invalid_argument if the quantiser does not fit between the projections.
  projected_quantizer(Projection in, Inner quantizer, Projection out)
      : base(std::move(quantizer)), in_(std::move(in)), out_(std::move(out)) {
    if (in_.outputs() != this->quantizer().inputs() || out_.inputs() != this->quantizer().outputs())
      throw_invalid("a quantiser of [T, ", this->quantizer().inputs(), "] to [T, ", this->quantizer().outputs(),
                    "] does not fit between projections to ", in_.outputs(), " and from ", out_.inputs());
  }

  index_t inputs() const noexcept { return in_.inputs(); }
  index_t outputs() const noexcept { return out_.outputs(); }

  Projection& project_in() noexcept { return in_; }
  Projection& project_out() noexcept { return out_; }

  void after_step(tape& t) {
    base::after_step(t);
    in_.after_step(t.in);
    out_.after_step(t.out);
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    return base::workspace_bytes(rows, training) + in_.workspace_bytes(rows, training) +
           out_.workspace_bytes(rows, training);
  }

private:
  template <typename Memory>
  void before(tokens_in<scalar> x, tokens_out<scalar> z, Memory& m, const context_type& context) const {
    in_.forward(x, z, m.in, context);
  }
  template <typename Memory>
  void after(tokens_in<scalar> q, tokens_out<scalar> y, Memory& m, const executor_ref& executor) const {
    context_type context;
    context.executor = executor;
    out_.forward(q, y, m.out, context);
  }
  void after_backward(tokens_in<scalar> dy, tokens_out<scalar> dq, tape& t) { out_.backward(dy, dq, t.out); }
  void before_backward(tokens_in<scalar> dz, tokens_out<scalar> dx, tape& t) { in_.backward(dz, dx, t.in); }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    if constexpr (HasParameters<Projection>) {
      visit("project_in", self.in_);
      visit("project_out", self.out_);
    }
  }

  Projection in_, out_;
};

template <typename Inner>
projected_quantizer(index_t, Inner, typename linear_layer<typename Inner::scalar>::options = {})
    -> projected_quantizer<Inner>;

}  // namespace sluice::inline SLUICE_ISA
