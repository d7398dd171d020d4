/// Merges experts into one: a mixture's weights add up the experts' parameters in place of their outputs.
///
///   v [G,D]        one vector a group: the mean of its tokens, or its first token      (gate/group_vectors.hpp)
///   w [G,E]        the router's plan for the G vectors: all experts, or those it chooses
///   theta_g      = sum over e of w[g,e] theta_e             all parameters of the experts, once a group
///   y[t]         = f(x[t]; theta_g)                         for every token t of group g
///   dtheta_e    += sum over g of w[g,e] dtheta_g;  dw[g,e] = <dtheta_g, theta_e>;  dv goes back into the tokens
///
///   merged_layer layer{moe_layer{dense_softmax_router<float>{64, 8}, expert_bank<ffn<float, silu>>{8, 64, 16}}};
///   layer.forward(x, y, tape, {.training = true, .groups = sequences});
///
/// What goes inside is a moe_layer, whose router and losses see a token a group: choosing the k best, noise and balance
/// are its own. A token passes one expert however many were merged; merging costs G k |theta|. With eight small experts
/// that is quicker than mixing outputs from some five tokens a group on, twenty times with 256. With experts that are
/// linear it is the mixture itself; otherwise it is not, and the mixture of outputs is the same moe_layer with the gate
/// in a gate/per_group.hpp. A merged expert a token: let every token be a group. What the router reads besides, of a
/// task say, are the context's group_features, as the features of its tokens (gate/features.hpp).
///
/// Training keeps a merged expert a group, and as much again for its gradients; inference merges for 16 groups at a
/// time. A group without experts gets zero; one whose logits are NaN gets NaN. Padding is in no mean and gets zero; a
/// token with NaN likewise, and gets NaN. Frozen experts stay as they are. Experts have to be alike and in full
/// precision, so stored_as leaves them. Not causal: the mean reads the whole group. Muqeeth, Liu, Raffel 2023 (SMEAR),
/// arXiv:2306.03745; He et al. 2023 (MEO), arXiv:2310.09832; Zhang et al. 2018 (MANN), "Mode-Adaptive Neural Networks".
#pragma once

#include <sluice/gate/group_vectors.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/layer/merged/parameter_sums.hpp>
#include <sluice/layer/mixture_layer.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <algorithm>
#include <optional>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Bank>
using bank_scalar = typename Bank::scalar;

/// What one call of a merged layer needs; LayerMemory is the inner layer's workspace or tape.
template <typename Bank, typename LayerMemory>
struct merged_memory {
  using scalar = typename Bank::scalar;

  LayerMemory layer;
  group_vectors<scalar> groups;
  merging_weights<scalar> weights;
  parameter_sums<scalar> sums;
  std::optional<Bank> merged;  ///< an expert a group
  typename Bank::tape experts;
  buffer<index_t> tokens;         ///< whose rows are which: those of a group that has experts stand together
  buffer<index_t> offsets;        ///< [G+1] rows of each group
  matrix_buffer<scalar> rows;     ///< their x
  matrix_buffer<scalar> outputs;  ///< their y
};

template <typename Bank, typename LayerTape>
struct merged_tape : merged_memory<Bank, LayerTape> {
  matrix_buffer<typename Bank::scalar> drows, doutputs, dweights;

  auto loss() const { return this->layer.loss(); }
};

template <typename Layer>
using bank_of_layer = std::remove_cvref_t<decltype(std::declval<Layer&>().bank())>;
template <typename Layer>
using merged_workspace_of = merged_memory<bank_of_layer<Layer>, typename Layer::workspace>;
template <typename Layer>
using merged_tape_of = merged_tape<bank_of_layer<Layer>, typename Layer::tape>;

}  // namespace detail

template <typename Layer, group_source Source = group_source::mean_of_tokens>
class merged_layer : public token_mixer<merged_layer<Layer, Source>, typename Layer::scalar,
                                        detail::merged_workspace_of<Layer>, detail::merged_tape_of<Layer>> {
  using base = token_mixer<merged_layer, typename Layer::scalar, detail::merged_workspace_of<Layer>,
                           detail::merged_tape_of<Layer>>;
  friend base;
  using bank_type = detail::bank_of_layer<Layer>;
  static_assert(MergeableBank<bank_type>, "sluice: merging needs an expert_bank of experts with parameters");
  static_assert(RoutedPlan<typename Layer::plan_type>, "sluice: merging needs a router that gives experts weights");
  static_assert(Source == group_source::mean_of_tokens || Source == group_source::first_token,
                "sluice: a merged layer's router reads means or first tokens; what else it reads is its gate's affair");

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = false;

  /// Throws std::invalid_argument if experts differ in shape.
  explicit merged_layer(Layer layer) : layer_(std::move(layer)) {
    parameter_sums<scalar>::validate(std::as_const(layer_).bank());
  }

  index_t inputs() const noexcept { return layer_.inputs(); }
  index_t outputs() const noexcept { return layer_.outputs(); }
  index_t experts() const noexcept { return layer_.experts(); }

  Layer& layer() noexcept { return layer_; }
  const Layer& layer() const noexcept { return layer_; }
  auto& router() noexcept { return layer_.router(); }
  auto& bank() noexcept { return layer_.bank(); }
  const auto& bank() const noexcept { return layer_.bank(); }

  void after_step(tape& t) { layer_.after_step(t.layer); }

  /// Bytes for so many tokens that are one group; each further group takes the parameters of an expert, in training
  /// twice.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t numbers = rows * (inputs() + outputs()) + parameter_count(layer_.bank()) / experts();
    return layer_.workspace_bytes(rows, training) + numbers * (training ? 2 : 1) * static_cast<index_t>(sizeof(scalar));
  }

  static consteval bool explain_training() { return explain_trainable_layer<Layer>(); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    Layer::visit_parameters(self.layer_, visit);
  }

private:
  static constexpr index_t merged_at_once = 16;  ///< in inference: enough to keep threads busy

  template <typename Memory>
  void mix(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    constexpr bool trains = std::same_as<Memory, tape>;
    const context_type seen = m.kept.visible(context);
    m.groups.find(seen, x.rows());
    m.groups.gather(Source, x, seen, inputs());
    const index_t groups = m.groups.groups(), together = trains ? groups : (std::min)(groups, merged_at_once);
    make_room(m, x.rows(), together, trains);
    route(m, seen);
    gather_rows(x, m, seen);
    for (index_t first = 0; first < groups; first += together) {
      const index_t count = (std::min)(together, groups - first);
      m.sums.merge(layer_.bank(), m.weights, first, count, *m.merged, context.executor);
      m.merged->forward(m.rows.map(), rows_of(m, first, count), m.outputs.map(), m.experts, context.executor);
    }
    y.setZero();
    for (index_t i = 0; i < m.tokens.size(); ++i) std::copy_n(m.outputs.row(i), y.cols(), &y(m.tokens[i], 0));
    for (const index_t g : m.layer.plan.invalid_tokens()) {
      const token_range group = context.group(g, x.rows());
      y.middleRows(group.begin, group.size()).setConstant(quiet_nan<scalar>());
    }
    if constexpr (trains) {
      layer_.evaluate_losses(m.layer);
      m.layer.record.keep(&layer_, m.layer.plan.rows());
    }
  }

  void mix_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    t.layer.record.validate(&layer_, t.layer.plan.rows());  // its memory may have been used for a call of its own
    const executor_ref& executor = t.context.executor;
    const context_type seen = t.kept.visible(t.context), groups = t.groups.context_of_groups(seen);
    t.doutputs.resize(t.tokens.size(), outputs());
    t.drows.resize(t.tokens.size(), inputs());
    for (index_t i = 0; i < t.tokens.size(); ++i)
      std::copy_n(dy.data() + t.tokens[i] * dy.outerStride(), dy.cols(), t.doutputs.row(i));
    ensure_gradients(*t.merged);
    zero_gradients(*t.merged);
    t.merged->backward(t.rows.map(), rows_of(t, 0, t.groups.groups()), t.doutputs.map(), t.drows.map(), t.experts,
                       executor);
    for (index_t i = 0; i < t.tokens.size(); ++i) std::copy_n(t.drows.row(i), dx.cols(), &dx(t.tokens[i], 0));
    t.sums.backward(layer_.bank(), t.weights, *t.merged, t.dweights, executor);
    auto& dplan = t.layer.dplan;
    dplan.weight.resize(t.layer.plan.rows());
    dplan.input_scale.resize(0);
    for (index_t i = 0; i < t.weights.w.size(); ++i)
      if (const index_t row = t.weights.row.data()[i]; row >= 0) dplan.weight[row] = t.dweights.data()[i];
    matrix_buffer<scalar>& dvectors = t.groups.clear_gradient();
    layer_.router().backward(t.groups.vectors().map(), groups, t.layer.plan, dplan, t.layer.router, dvectors.map());
    t.groups.scatter(Source, seen, dx);
  }

  /// So that no other call of as many tokens and groups allocates, whatever is routed where.
  template <typename Memory>
  void make_room(Memory& m, index_t tokens, index_t together, bool trains) const {
    if (!m.merged || m.merged->experts() < together || !is_like(*m.merged)) {
      m.merged = layer_.bank().copies_of_first((std::max<index_t>)(1, together));
      m.experts = {};
      // Experts that are frozen are merged with weights that learn.
      detail::for_each_unnamed_parameter(*m.merged, [](auto& p) { p.set_frozen(false); });
    }
    if constexpr (requires { m.merged->prepare(m.experts, tokens, trains); })
      m.merged->prepare(m.experts, tokens, trains);
    m.tokens.reserve(tokens);
    m.rows.reserve(tokens, inputs());
    m.outputs.reserve(tokens, outputs());
    if constexpr (std::same_as<Memory, tape>) {
      m.drows.reserve(tokens, inputs());
      m.doutputs.reserve(tokens, outputs());
      m.layer.dplan.weight.reserve(m.groups.groups() * experts());
    }
  }

  /// Whether the memory was this layer's, or that of one with equal experts.
  bool is_like(const bank_type& merged) const {
    return merged.inputs() == inputs() && merged.outputs() == outputs() &&
           parameter_count(merged) * experts() == parameter_count(layer_.bank()) * merged.experts();
  }

  /// The plan for the vectors, and its weights as a table.
  template <typename Memory>
  void route(Memory& m, const context_type& seen) const {
    const context_type groups = m.groups.context_of_groups(seen);
    const index_t count = m.groups.groups();
    layer_.router().route(m.groups.vectors().map(), groups, m.layer.plan, m.layer.router);
    if constexpr (std::same_as<Memory, tape>) m.layer.context = groups;
    m.weights.w.resize(count, experts());
    m.weights.row.resize(count, experts());
    std::fill_n(m.weights.row.data(), m.weights.row.size(), index_t(-1));
    const routed_rows<scalar> routed = m.layer.plan.routed();
    if (routed.input_scales != nullptr) throw_invalid("a merged layer cannot run a router that scales experts' inputs");
    for (const auto& [expert, begin, end] : routed.by_expert)
      for (index_t i = begin; i < end; ++i) {
        m.weights.w(routed.token(i), expert) = routed.weight(i);
        m.weights.row(routed.token(i), expert) = i;
      }
    index_t hidden = 0;
    for (index_t g = 0; g < count; ++g) hidden += groups.is_padding(g);
    m.layer.statistics.count(m.layer.plan, hidden);
  }

  template <typename Memory>
  void gather_rows(tokens_in<scalar> x, Memory& m, const context_type& seen) const {
    const index_t groups = m.groups.groups();
    m.tokens.clear();
    m.offsets.resize(groups + 1);
    m.offsets[0] = 0;
    for (index_t g = 0; g < groups; ++g) {
      const index_t* const rows = m.weights.row.row(g);
      const bool has_experts = std::any_of(rows, rows + experts(), [](index_t row) { return row >= 0; });
      const token_range group = seen.group(g, x.rows());
      for (index_t t = group.begin; has_experts && t < group.end; ++t)
        if (m.groups.counts(t)) m.tokens.push_back(t);
      m.offsets[g + 1] = m.tokens.size();
    }
    m.rows.resize(m.tokens.size(), inputs());
    m.outputs.resize(m.tokens.size(), outputs());
    for (index_t i = 0; i < m.tokens.size(); ++i)
      std::copy_n(x.data() + m.tokens[i] * x.outerStride(), x.cols(), m.rows.row(i));
  }

  template <typename Memory>
  static expert_rows rows_of(const Memory& m, index_t first, index_t count) {
    return m.offsets.span().subspan(as_size(first), as_size(count + 1));
  }

  Layer layer_;
};

}  // namespace sluice::inline SLUICE_ISA
