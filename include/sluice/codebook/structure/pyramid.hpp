/// A hierarchy over a grid of tokens: coarse codes first, each for a square of tokens, then finer ones for what is
/// left.
///
///   r_1 = x     z_j = mean of r_j over each s_j x s_j cell     ids_j, q_j = stage j of z_j
///   r_{j+1} = r_j - q_j of the token's cell                    y = sum of q_j of the token's cells
///
///   pyramid_quantizer two{std::vector{top, bottom}, {2, 1}, {.height = 32, .width = 32}};    // VQ-VAE-2's resolutions
///
/// Tokens are images of height x width, row by row, one after another; cells at a border may be smaller. Column j of
/// ids has the code of the token's cell, so that decode needs no grid, takes any prefix, and a cell's number stands at
/// all of its tokens: bits are counted once a cell. Nothing is cut from the gradient: with straight-through stages dx =
/// dy and what the losses add. VQ-VAE-2 has networks between its levels; here the top conditions the bottom by being
/// taken away. Hidden tokens are in no cell's mean. Losses add up, each a mean over its cells. Parameters: "stages.0",
/// ... Everything else: codebook/quantizer.hpp.
/// Razavi, van den Oord, Vinyals 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2"; Peng et al. 2021,
/// "Generating Diverse Structure for Image Inpainting With Hierarchical VQ-VAE".
#pragma once

#include <sluice/codebook/quantizer.hpp>
#include <sluice/codebook/structure/quantizer_list.hpp>
#include <sluice/codebook/structure/token_grid.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Stage>
struct pyramid_workspace {
  std::vector<typename Stage::workspace> stages;
  grid_level<typename Stage::scalar> level;
  matrix_buffer<typename Stage::scalar> residual;
  buffer<std::uint8_t> seen;
};
template <typename Stage>
struct pyramid_tape {
  std::vector<typename Stage::tape> stages;
  std::vector<grid_level<typename Stage::scalar>> levels;
  matrix_buffer<typename Stage::scalar> residual, sum, dquantized, dmeans;
};

}  // namespace detail

template <Quantizer Stage>
class pyramid_quantizer : public quantizer_base<pyramid_quantizer<Stage>, typename Stage::scalar,
                                                detail::pyramid_workspace<Stage>, detail::pyramid_tape<Stage>> {
  using memory = detail::pyramid_workspace<Stage>;
  using base = quantizer_base<pyramid_quantizer, typename Stage::scalar, memory, detail::pyramid_tape<Stage>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = false;
  static constexpr bool mixes_tokens = true;

  /// Throws std::invalid_argument unless there is a stage, each has a side >= 1 and maps [T,D] to as much, and the grid
  /// has a token.
  pyramid_quantizer(std::vector<Stage> stages, std::vector<index_t> sides, token_grid grid)
      : stages_(std::move(stages)), sides_(std::move(sides)), grid_(grid) {
    if (static_cast<index_t>(sides_.size()) != stages_.size() || grid.height < 1 || grid.width < 1)
      throw_invalid("pyramid_quantizer needs a side for each of ", stages_.size(), " stages and a grid, not ",
                    sides_.size(), " sides and ", grid.height, " x ", grid.width);
    for (index_t j = 0; j < stages_.size(); ++j)
      if (sides_[as_size(j)] < 1 || stage(j).inputs() != inputs() || stage(j).outputs() != inputs())
        throw_invalid("stage ", j, " of a pyramid of width ", inputs(), " has the side ", sides_[as_size(j)],
                      " and maps [T, ", stage(j).inputs(), "] to [T, ", stage(j).outputs(), "]");
  }

  index_t inputs() const noexcept { return stages_[0].inputs(); }
  index_t code_columns() const noexcept { return stages_.code_columns(); }
  index_t codes(index_t column) const noexcept { return stages_.codes(column); }

  index_t levels() const noexcept { return stages_.size(); }
  index_t side(index_t j) const noexcept { return sides_[as_size(j)]; }
  const token_grid& grid() const noexcept { return grid_; }
  Stage& stage(index_t j) noexcept { return stages_[j]; }
  const Stage& stage(index_t j) const noexcept { return stages_[j]; }

  void after_step(tape& t) {
    t.record.validate(this);
    for (index_t j = 0; j < levels(); ++j) stage(j).after_step(t.stages[as_size(j)]);
  }

  template <typename F>
  void for_each_replaced(tape& t, F&& f) {
    for (index_t j = 0; j < levels(); ++j) stage(j).for_each_replaced(t.stages[as_size(j)], f);
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t matrices = training ? 4 + 2 * levels() : 3;
    return base::workspace_bytes(rows, training) + stages_.workspace_bytes(rows, training) +
           rows * inputs() * matrices * static_cast<index_t>(sizeof(scalar));
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    quantizer_list<Stage>::visit_as(self.stages_, "stage", visit);
  }

private:
  using level = detail::grid_level<scalar>;

  void check_images(index_t tokens) const {
    if (tokens % (grid_.height * grid_.width) != 0)
      throw_invalid(tokens, " tokens are no images of ", grid_.height, " x ", grid_.width);
  }

  context_type context_of(const context_type& whole, index_t j, const level& of) const {
    context_type own;
    own.training = whole.training;
    own.random = whole.random.split(j);
    own.step = whole.step;
    own.executor = whole.executor;
    own.token_mask = of.seen.span();
    return own;
  }

  void prepare(memory& m, const executor_ref& executor) const {
    m.stages.resize(as_size(levels()));
    for (index_t j = 0; j < levels(); ++j) stage(j).prepare_call(m.stages[as_size(j)], executor);
  }

  void encode_rows(tokens_in<scalar> x, tokens_out<index_t> ids, memory& m, const context_type& context) const {
    check_images(x.rows());
    m.seen.resize(x.rows());
    m.residual.resize(x.rows(), inputs());
    m.residual.map() = x;
    ids.setConstant(no_code);
    for (index_t t = 0; t < x.rows(); ++t) m.seen[t] = !context.is_padding(t) && !any_nan(m.residual.row(t), inputs());
    for (index_t j = 0; j < levels(); ++j) {
      m.level.pool(grid_, side(j), m.residual, m.seen.data(), stage(j).code_columns());
      const context_type own = context_of(context, j, m.level);
      stage(j).encode_prepared(std::as_const(m.level.means).map(), m.level.ids.map(), m.stages[as_size(j)], own);
      stage(j).decode_prepared(std::as_const(m.level.ids).map(), m.level.quantized.map(), m.stages[as_size(j)],
                               context.executor);
      m.level.take_away(grid_, side(j), m.seen.data(), stages_.columns(ids, j), m.residual, nullptr);
    }
  }

  void decode_rows(tokens_in<index_t> ids, tokens_out<scalar> y, memory& m, const executor_ref& executor) const {
    m.residual.resize(ids.rows(), inputs());
    y.setZero();
    for (index_t j = 0; j < levels(); ++j) {
      stage(j).decode_prepared(stages_.columns(ids, j), m.residual.map(), m.stages[as_size(j)], executor);
      y += m.residual.map();
    }
  }

  void assign(tape& t, const context_type& context) const {
    const auto x = t.kept.x();
    check_images(x.rows());
    t.stages.resize(as_size(levels()));
    t.levels.resize(as_size(levels()));
    t.residual.resize(x.rows(), inputs());
    t.residual.map() = x;
    t.sum.set_zero(x.rows(), inputs());
    std::fill_n(t.ids.data(), t.ids.size(), no_code);
    for (index_t j = 0; j < levels(); ++j) {
      level& own = t.levels[as_size(j)];
      auto& stage_tape = t.stages[as_size(j)];
      own.pool(grid_, side(j), t.residual, t.kept.counts(), stage(j).code_columns());
      stage(j).forward(std::as_const(own.means).map(), own.quantized.map(), stage_tape, context_of(context, j, own));
      own.ids.map() = stage_tape.ids.map();
      own.take_away(grid_, side(j), t.kept.counts(), stages_.columns(t.ids.map(), j), t.residual, &t.sum);
    }
  }

  void quantize(tape& t, tokens_out<scalar> y, const context_type&) const {
    y = t.sum.map();
    t.value = 0;
    for (const auto& one : t.stages) t.value += one.loss();
  }

  /// With d the gradient of what is left behind level j: dq = sum over the cell of dy - d, and d += dz / its tokens.
  void quantize_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    for (index_t j = levels() - 1; j >= 0; --j) {
      const level& own = t.levels[as_size(j)];
      t.dquantized.set_zero(own.means.rows(), inputs());
      t.dmeans.resize(own.means.rows(), inputs());
      for (index_t i = 0; i < dy.rows(); ++i)
        if (t.kept.counts(i))
          for (index_t d = 0; d < inputs(); ++d) t.dquantized(grid_.cell(i, side(j)), d) += dy(i, d) - dx(i, d);
      stage(j).backward(std::as_const(t.dquantized).map(), t.dmeans.map(), t.stages[as_size(j)]);
      for (index_t i = 0; i < dy.rows(); ++i) {
        const index_t c = grid_.cell(i, side(j));
        if (t.kept.counts(i))
          kernel::add_scaled(1 / static_cast<scalar>(own.count[c]), t.dmeans.row(c), &dx(i, 0), inputs());
      }
    }
  }

  quantizer_list<Stage> stages_;
  std::vector<index_t> sides_;
  token_grid grid_;
};

}  // namespace sluice::inline SLUICE_ISA
