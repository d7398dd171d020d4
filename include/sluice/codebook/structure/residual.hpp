/// Residual quantisation: a stage quantises what the stages before it left over, and the sum of all codes is the
/// output.
///
///   r_1 = x     ids_j, q_j = stage j of r_j     r_{j+1} = r_j - q_j     y = q_1 + ... + q_M
///
///   residual_quantizer rq{vector_quantizer{moving_average_codes<float>{1024, 64}}, 8};        // one codebook, 8 depths
///   residual_quantizer own{std::vector{first, second, third}, {.gradient = residual_gradient::each_stage}};
///   rq.use_stages(4);                     encode(x, ids, workspace)  has no_code in the columns of stages 5 to 8
///
/// A stage is any quantiser, a product or a projected one too; its columns of ids follow those of the stage before it.
/// decode takes any prefix: later columns that are no_code add nothing. Published programs send gradients back in three
/// ways, g_j being a stage's own backward, with its losses, and l_j its losses alone:
///
///   once             dx = dy + sum of l_j           y = x + sg[y - x], residuals without the codes' gradients: RQ-VAE
///   each_stage       dx = sum of g_j(dy)            residuals without the codes' gradients: dx counts dy M times
///   through_stages   d_{M+1} = 0, d_j = d_{j+1} + g_j(dy - d_{j+1}), dx = d_1        nothing cut: EnCodec, DAC
///
/// Losses add up; RQ-VAE's mean over prefixes, |x - sg[q_1 + ... + q_j]|^2, is the commitment of every stage with
/// weight 1/M, for r_j - q_j is the same difference. A shared codebook learns of the depths one after the other, in
/// after_step; residual_quantizer{stage, M, moves_between_depths{}} (RQ-VAE) already in forward, so that depth j + 1
/// searches what depth j has moved, and after_step makes it last; a training output then depends on the whole batch.
/// With dropout, an item's later stages may be left out in training (codebook/structure/prefix_dropout.hpp).
///
/// The error can grow with a stage that has no code near zero; with one at zero it cannot. Parameters: "stages.0",
/// "stages.1", ..., or "stage". Everything else: codebook/quantizer.hpp.
/// Lee et al. 2022, "Autoregressive Image Generation using Residual Quantization"; Zeghidour et al. 2021,
/// "SoundStream".
#pragma once

#include <sluice/codebook/quantizer.hpp>
#include <sluice/codebook/structure/moved_stage.hpp>
#include <sluice/codebook/structure/prefix_dropout.hpp>
#include <sluice/codebook/structure/quantizer_list.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

enum class residual_gradient { once, each_stage, through_stages };

struct residual_options {
  residual_gradient gradient = residual_gradient::once;
  double dropout = 0;
};

/// When the codes of a stage that all depths share learn.
struct learns_after_step {};
struct moves_between_depths {};

namespace detail {

template <typename Stage>
struct residual_stages_workspace {
  std::vector<typename Stage::workspace> stages;
  matrix_buffer<typename Stage::scalar> residual, value;
};

template <typename Stage>
struct residual_stages_tape {
  std::vector<typename Stage::tape> stages;  ///< of those that the call used
  std::vector<buffer<std::uint8_t>> seen;    ///< a stage's tokens
  buffer<index_t> prefix;                    ///< [T] how many stages a token may have
  matrix_buffer<typename Stage::scalar> residual, quantized, sum;
  matrix_buffer<typename Stage::scalar> dquantized, dstage;
  moved_stage<Stage> moved;  ///< the shared codebook as each depth saw it
};

}  // namespace detail

template <Quantizer Stage, typename Learning = learns_after_step>
class residual_quantizer
    : public quantizer_base<residual_quantizer<Stage, Learning>, typename Stage::scalar,
                            detail::residual_stages_workspace<Stage>, detail::residual_stages_tape<Stage>> {
  using memory = detail::residual_stages_workspace<Stage>;
  using base = quantizer_base<residual_quantizer, typename Stage::scalar, memory, detail::residual_stages_tape<Stage>>;
  friend base;

public:
  static constexpr bool moves = std::same_as<Learning, moves_between_depths>;
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = is_causal<Stage> && !moves;
  static constexpr bool mixes_tokens = is_token_mixer<Stage>;

  /// Stages of their own. Throws std::invalid_argument unless there is one and all map [T,D] to [T,D], and 0 <= dropout
  /// <= 1.
  explicit residual_quantizer(std::vector<Stage> stages, residual_options o = {})
    requires(!moves)
      : residual_quantizer(quantizer_list<Stage>(std::move(stages)), o) {}
  /// One stage for all depths. Throws std::invalid_argument as above, unless depth >= 1, and if codes are to move that
  /// are learned by gradients.
  residual_quantizer(Stage shared, index_t depth, Learning, residual_options o = {})
      : residual_quantizer(quantizer_list<Stage>(std::move(shared), depth), o) {
    if constexpr (moves) detail::check_learns_from_data(stages_[0]);
  }
  residual_quantizer(Stage shared, index_t depth, residual_options o = {})
    requires(!moves)
      : residual_quantizer(std::move(shared), depth, Learning{}, o) {}

  index_t inputs() const noexcept { return stages_[0].inputs(); }
  index_t code_columns() const noexcept { return stages_.code_columns(); }
  index_t codes(index_t column) const noexcept { return stages_.codes(column); }

  /// M.
  index_t depth() const noexcept { return stages_.size(); }
  const residual_options& options() const noexcept { return options_; }
  Stage& stage(index_t j) noexcept { return stages_[j]; }
  const Stage& stage(index_t j) const noexcept { return stages_[j]; }

  /// From now on calls use the first n stages. Throws std::invalid_argument unless 1 <= n <= M.
  void use_stages(index_t n) {
    if (n < 1 || n > depth()) throw_invalid("a residual quantiser of ", depth(), " stages cannot use ", n);
    used_ = n;
  }
  index_t used_stages() const noexcept { return used_; }

  void after_step(tape& t) {
    t.record.validate(this);
    if constexpr (moves)
      t.moved.write_back(stages_[0]);
    else
      for (std::size_t j = 0; j < t.stages.size(); ++j) stage(static_cast<index_t>(j)).after_step(t.stages[j]);
  }

  template <typename F>
  void for_each_replaced(tape& t, F&& f) {
    for (std::size_t j = 0; j < t.stages.size(); ++j) stage(static_cast<index_t>(j)).for_each_replaced(t.stages[j], f);
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    return base::workspace_bytes(rows, training) + stages_.workspace_bytes(rows, training) +
           rows * inputs() * static_cast<index_t>(sizeof(scalar)) * (training ? 5 : 2);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    quantizer_list<Stage>::visit_as(self.stages_, "stage", visit);
  }

private:
  residual_quantizer(quantizer_list<Stage> stages, residual_options o)
      : stages_(std::move(stages)), options_(o), used_(stages_.size()) {
    if (!is_between(o.dropout, 0.0, 1.0)) throw_invalid("residual_quantizer needs 0 <= dropout <= 1, not ", o.dropout);
    for (index_t j = 0; j < depth(); ++j)
      if (stage(j).inputs() != inputs() || stage(j).outputs() != inputs())
        throw_invalid("the stages of a residual quantiser of width ", inputs(), " map [T, ", inputs(),
                      "] to as much, not [T, ", stage(j).inputs(), "] to [T, ", stage(j).outputs(), "]");
  }

  auto& workspace_of(memory& m, index_t j) const { return m.stages[stages_.memory_of(j)]; }

  void prepare(memory& m, const executor_ref& executor) const {
    m.stages.resize(as_size(stages_.workspaces()));
    for (index_t j = 0; j < (stages_.is_shared() ? 1 : used_); ++j) stage(j).prepare_call(workspace_of(m, j), executor);
  }

  void encode_rows(tokens_in<scalar> x, tokens_out<index_t> ids, memory& m, const context_type& context) const {
    m.residual.resize(x.rows(), inputs());
    m.value.resize(x.rows(), inputs());
    ids.setConstant(no_code);
    stage(0).encode_prepared(x, stages_.columns(ids, 0), workspace_of(m, 0), context);
    for (index_t j = 1; j < used_; ++j) {
      stage(j - 1).decode_prepared(stages_.columns(ids, j - 1), m.value.map(), workspace_of(m, j - 1),
                                   context.executor);
      const scalar* const before = j == 1 ? x.data() : m.residual.data();
      const index_t stride = j == 1 ? x.outerStride() : m.residual.cols();
      context.executor.parallel_each(x.rows(), inputs(), [&](index_t t) {
        const scalar *from = before + t * stride, *value = m.value.row(t);
        scalar* const left = m.residual.row(t);
        for (index_t i = 0; i < inputs(); ++i) left[i] = from[i] - value[i];
      });
      stage(j).encode_prepared(std::as_const(m.residual).map(), stages_.columns(ids, j), workspace_of(m, j), context);
    }
  }

  void decode_rows(tokens_in<index_t> ids, tokens_out<scalar> y, memory& m, const executor_ref& executor) const {
    m.value.resize(ids.rows(), inputs());
    stage(0).decode_prepared(stages_.columns(ids, 0), y, workspace_of(m, 0), executor);
    for (index_t j = 1; j < depth(); ++j) {
      if ((stages_.columns(ids, j).col(0).array() == no_code).all()) continue;
      if (j >= used_ && !stages_.is_shared()) stage(j).prepare_call(workspace_of(m, j), executor);
      stage(j).decode_prepared(stages_.columns(ids, j), m.value.map(), workspace_of(m, j), executor);
      executor.parallel_each(ids.rows(), inputs(), [&](index_t t) {
        kernel::add_scaled(scalar(1), m.value.row(t), y.data() + t * y.outerStride(), inputs());
      });
    }
  }

  void assign(tape& t, const context_type& context) const {
    const index_t tokens = t.kept.rows();
    t.stages.resize(as_size(used_));
    t.seen.resize(as_size(used_));
    t.residual.resize(tokens, inputs());
    t.quantized.resize(tokens, inputs());
    t.sum.resize(tokens, inputs());
    std::fill_n(t.ids.data(), t.ids.rows() * t.ids.cols(), no_code);
    std::copy_n(t.kept.x().data(), tokens * inputs(), t.residual.data());
    std::fill_n(t.sum.data(), tokens * inputs(), scalar(0));
    draw_prefixes(context, tokens, used_, options_.dropout, t.prefix);
    if constexpr (moves) t.moved.begin(stages_[0], used_);
    for (index_t j = 0; j < used_; ++j) {
      auto& stage_tape = t.stages[as_size(j)];
      context_type own = context.for_layer(j);
      own.token_mask = choose_tokens(t, j);
      forward_stage(t, j).forward(std::as_const(t.residual).map(), t.quantized.map(), stage_tape, own);
      stages_.columns(t.ids.map(), j) = stage_tape.ids.map();
      context.executor.parallel_each(tokens, inputs(), [&](index_t token) {
        if (t.ids(token, stages_.first_column(j)) == no_code) return;
        kernel::add_scaled(scalar(1), t.quantized.row(token), t.sum.row(token), inputs());
        kernel::add_scaled(scalar(-1), t.quantized.row(token), t.residual.row(token), inputs());
      });
      if constexpr (moves) t.moved.step(j, stage_tape);
    }
  }

  /// Which tokens stage j sees.
  std::span<const std::uint8_t> choose_tokens(tape& t, index_t j) const {
    const index_t tokens = t.kept.rows();
    auto& seen = t.seen[as_size(j)];
    seen.resize(tokens);
    for (index_t i = 0; i < tokens; ++i)
      seen[i] = j < t.prefix[i] && t.kept.counts(i) && (j == 0 || t.ids(i, stages_.first_column(j - 1)) != no_code);
    return std::as_const(seen).span();
  }

  void quantize(tape& t, tokens_out<scalar> y, const context_type&) const {
    y = t.sum.map();
    t.value = 0;
    for (const auto& one : t.stages) t.value += one.loss();
  }

  void quantize_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    const index_t tokens = dy.rows();
    t.dquantized.resize(tokens, inputs());
    t.dstage.resize(tokens, inputs());
    const bool is_cut_off = options_.gradient == residual_gradient::once;
    if (is_cut_off) {
      dx = dy;
      std::fill_n(t.dquantized.data(), tokens * inputs(), scalar(0));
    }
    for (auto j = static_cast<index_t>(t.stages.size()) - 1; j >= 0; --j) {
      if (!is_cut_off) t.dquantized.map() = dy;
      if (options_.gradient == residual_gradient::through_stages) t.dquantized.map() -= dx;
      backward_stage(t, j).backward(std::as_const(t.dquantized).map(), t.dstage.map(), t.stages[as_size(j)]);
      dx += t.dstage.map();
    }
  }

  /// Stage j as a training call has it.
  const Stage& forward_stage(tape& t, index_t j) const {
    if constexpr (moves)
      return t.moved.at(j);
    else
      return stage(j);
  }
  Stage& backward_stage(tape& t, index_t j) {
    if constexpr (moves)
      return t.moved.at(j);
    else
      return stage(j);
  }

  quantizer_list<Stage> stages_;
  residual_options options_;
  index_t used_;
};

}  // namespace sluice::inline SLUICE_ISA
