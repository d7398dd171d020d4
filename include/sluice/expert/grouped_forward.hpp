/// Runs all feed-forward experts of a bank at once: gather and pack, first maps with the activation, last map added
/// into y.
///
///   pack     rows of x, gathered by expert, in blocks as tiles read them               tasks: blocks of rows
///   hidden   h = activate(x W_first^T) of all rows, written packed for what follows    tasks: expert x panels of W_first
///   output   y[token] += weight * (h W_last^T + b)                                     tasks: columns of y, all experts
///
/// An output task owns its columns of y and goes through the experts in order: no second pass combines, nothing is
/// atomic, and a token's sum has one order. Neither how tasks are cut (expert/grouped_rows.hpp) nor the other rows of
/// the batch change a bit of a row's result.
///
/// In a small batch handing out tasks three times costs more than it gains. There a task is an expert, from its tokens
/// to its outputs, which wait until all are there and are then added up in the same order: equal bits.
///
/// An expert takes this road if it is MadeOfLinearMaps; see expert/gated_ffn.hpp for one that is.
#pragma once

#include <sluice/expert/grouped_rows.hpp>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <MadeOfLinearMaps Expert>
class grouped_forward {
public:
  using scalar = typename Expert::scalar;
  using memory = grouped_memory<Expert>;
  using first_storage = typename memory::first_storage;
  using last_storage = typename memory::last_storage;
  static constexpr index_t lanes = kernel::simd_width<scalar>;
  static constexpr int maps = Expert::first_maps;

  /// expert_of(e) is expert e.
  template <typename ExpertOf>
  grouped_forward(const routed_rows<scalar>& rows, const ExpertOf& expert_of, index_t inputs, index_t outputs,
                  memory& m, const executor_ref& executor)
      : rows_(rows), inputs_(inputs), outputs_(outputs), m_(m), group_(rows, expert_of, inputs, m, executor) {}

  /// Bytes that x, h and waiting outputs take for this many rows, without the list of tasks.
  static index_t bytes(index_t rows, index_t experts, index_t inputs, index_t hidden, index_t outputs) {
    constexpr auto number = static_cast<index_t>(sizeof(scalar));
    index_t row = is_direct || maps == 0 ? 0 : number * full_rows::pitch(hidden);
    if (maps > 0) row += packed_bytes<first_storage>(inputs);
    row += packed_bytes<last_storage>(hidden);
    return rows * row + number * waiting_outputs(rows, outputs) +
           (std::min)(rows, experts) * static_cast<index_t>(sizeof(active_rows));
  }

  /// Makes room for this many rows, whoever gets them; `hidden` is the largest width. Packed inputs come last: where
  /// they have room, everything has.
  static void reserve(memory& m, index_t rows, index_t experts, index_t inputs, index_t hidden, index_t outputs) {
    m.active.reserve((std::min)(rows, experts));
    m.outputs.reserve(waiting_outputs(rows, outputs));
    if (!is_direct && maps > 0) m.h_rows.reserve(rows * full_rows::pitch(hidden));
    if (m.keep)
      for (auto& z : m.z) z.reserve(rows * full_rows::pitch(hidden));
    if constexpr (SumsInBlocks<last_storage>)
      m.h_factors.reserve(rows * kernel::packed_rows<last_storage>::row_factors(hidden));
    m.h.reserve(rows * kernel::packed_rows<last_storage>::pitch(hidden));
    if (maps == 0) return;
    if constexpr (SumsInBlocks<first_storage>)
      m.x_factors.reserve(rows * kernel::packed_rows<first_storage>::row_factors(inputs));
    m.x.reserve(rows * kernel::packed_rows<first_storage>::pitch(inputs));
  }
  static bool has_room(const memory& m, index_t rows, index_t inputs) {
    if (maps == 0) return m.h.capacity() >= rows * kernel::packed_rows<last_storage>::pitch(inputs);
    return m.x.capacity() >= rows * kernel::packed_rows<first_storage>::pitch(inputs);
  }

  void run(tokens_in<scalar> x, tokens_out<scalar> y, const auto& expert_of) {
    make_room();
    if (group_.suits_whole_experts(output_pitch(outputs_))) {
      whole_experts(x, y, expert_of);
      return;
    }
    pack_inputs(x, expert_of);
    hidden(expert_of);
    output(y, expert_of);
  }

  /// Makes h and z again from the packed rows, bit for bit, where backward has used z up.
  void restore(const auto& expert_of) {
    if (!m_.is_spent) return;
    m_.is_spent = false;
    hidden(expert_of);
  }

private:
  using full = full_precision<scalar>;
  using full_rows = kernel::packed_rows<full>;
  using active_rows = typename memory::active_rows;
  using task = typename memory::task;
  using panel_pair = kernel::streams<const std::byte*>;
  using sums_t = kernel::streams<const scalar*>;
  static constexpr bool is_direct = grouped_rows<Expert>::is_direct;

  template <typename Storage>
  static index_t packed_bytes(index_t inputs) {
    using packed = kernel::packed_rows<Storage>;
    return packed::pitch(inputs) * static_cast<index_t>(sizeof(typename packed::activation)) +
           packed::row_factors(inputs) * static_cast<index_t>(sizeof(typename packed::factor));
  }

  /// Panels 2q and 2q + 1 of a map; an odd last panel stands twice, and its copy's sums are not used.
  static panel_pair neighbours(const PanelledMap auto& map, index_t q) {
    return {map.panel(2 * q), map.panel((std::min)(2 * q + 1, map.panels() - 1))};
  }
  static panel_pair first_panels(const Expert& expert, index_t q) {
    if constexpr (maps == 2)
      return {expert.first_map(0).panel(q), expert.first_map(1).panel(q)};
    else
      return neighbours(expert.first_map(0), q);
  }

  static index_t output_pitch(index_t outputs) { return (outputs + lanes - 1) / lanes * lanes; }
  /// A smaller batch may take the other road, and must not allocate then.
  static index_t waiting_outputs(index_t rows, index_t outputs) {
    return (std::min)(rows * output_pitch(outputs), whole_experts_outputs);
  }

  void make_room() {
    const index_t rows = rows_.size(), hidden = group_.hidden_width();
    m_.outputs.resize(waiting_outputs(rows, outputs_));
    if constexpr (maps > 0) {
      m_.x.resize(rows * kernel::packed_rows<first_storage>::pitch(inputs_));
      if constexpr (SumsInBlocks<first_storage>)
        m_.x_factors.resize(rows * kernel::packed_rows<first_storage>::row_factors(inputs_));
      if constexpr (!is_direct) m_.h_rows.resize(rows * full_rows::pitch(hidden));
    }
    m_.h.resize(rows * kernel::packed_rows<last_storage>::pitch(hidden));
    if constexpr (SumsInBlocks<last_storage>)
      m_.h_factors.resize(rows * kernel::packed_rows<last_storage>::row_factors(hidden));
    for (auto& z : m_.z) z.resize(m_.keep ? rows * full_rows::pitch(hidden) : 0);
    m_.is_spent = false;
  }

  void pack_inputs(tokens_in<scalar> x, const auto& expert_of) {
    group_.run_tasks([&](const active_rows& own) { return group_.blocks_of(own).count(); },
                     [&](const active_rows& own) { return group_.blocks_of(own).height() * inputs_; },
                     [&](const task& t) { pack_inputs_of(t, x, expert_of(t.own.expert)); });
  }
  void pack_inputs_of(const task& t, tokens_in<scalar> x, const Expert& expert) {
    const kernel::row_blocks rows = group_.blocks_of(t.own);
    const auto row_of = [&](index_t i) { return x.data() + rows_.token(i) * x.outerStride(); };
    const auto scale_of = [&](index_t i) { return rows_.input_scale(i); };
    for (index_t b = t.begin; b < t.end; ++b)
      if constexpr (maps > 0)
        kernel::pack_block(expert.first_map(0).format(), group_.packed_inputs(), rows, b, row_of, scale_of);
      else
        kernel::pack_block(expert.last_map().format(), group_.packed_hidden(rows, inputs_), rows, b, row_of, scale_of);
  }

  void hidden(const auto& expert_of) {
    if constexpr (maps > 0) {
      group_.run_tasks([&](const active_rows& own) { return group_.pairs_of(expert_of(own.expert)); },
                       [&](const active_rows& own) { return own.size() * inputs_ * lanes * kernel::tile_vectors; },
                       [&](const task& t) { hidden_of(t, expert_of(t.own.expert)); });
      if constexpr (!is_direct) pack_hidden(expert_of);
    }
  }
  void hidden_of(const task& t, const Expert& expert) {
    const kernel::row_blocks rows = group_.blocks_of(t.own);
    kernel::multiply_panels<first_storage>(
        expert.first_map(0).format(), group_.packed_inputs(), rows, t.begin, t.end,
        [&](index_t q) { return first_panels(expert, (std::min)(q, t.end - 1)); },
        [&](index_t b, index_t q, const sums_t& z) { activate(expert, rows, b, q, z); });
  }

  void activate(const Expert& expert, const kernel::row_blocks& rows, index_t b, index_t q, const sums_t& sums) {
    using vector = kernel::simd<scalar>;
    const index_t width = expert.last_map().inputs();
    const index_t panels = (width + lanes - 1) / lanes;
    const auto one = [&](index_t i, index_t p, const std::array<vector, as_size(maps)>& z) {
      kernel::store<scalar>(group_.hidden_numbers(rows, b, i, p, width), expert.activate(p * lanes, z));
      if (m_.keep)
        for (std::size_t map = 0; map < maps; ++map)
          kernel::store<scalar>(group_.template packed_numbers<full>(m_.z[map], rows, width).panel(rows, b, i, p),
                                z[map]);
    };
    for (index_t i = 0; i < rows.size(b); ++i) {
      const vector z0 = kernel::load(sums[0] + i * lanes);
      const vector z1 = kernel::load(sums[1] + i * lanes);
      if constexpr (maps == 2) {
        one(i, q, {z0, z1});
      } else {
        one(i, 2 * q, {z0});
        if (2 * q + 1 < panels) one(i, 2 * q + 1, {z1});
      }
    }
  }

  void pack_hidden(const auto& expert_of) {
    group_.run_tasks([&](const active_rows& own) { return group_.blocks_of(own).count(); },
                     [&](const active_rows& own) { return group_.blocks_of(own).height() * group_.hidden_width(); },
                     [&](const task& t) { pack_hidden_of(t, expert_of(t.own.expert)); });
  }
  void pack_hidden_of(const task& t, const Expert& expert) {
    const kernel::row_blocks rows = group_.blocks_of(t.own);
    const index_t width = expert.last_map().inputs();
    for (index_t b = t.begin; b < t.end; ++b)
      kernel::pack_block(
          expert.last_map().format(), group_.packed_hidden(rows, width), rows, b,
          [&](index_t i) { return group_.hidden_numbers(rows, b, i - rows.begin(b), 0, width); },
          [](index_t) { return scalar(1); });
  }

  void output(tokens_out<scalar> y, const auto& expert_of) {
    constexpr index_t pair_columns = lanes * kernel::tile_vectors;
    const index_t pairs = (outputs_ + pair_columns - 1) / pair_columns;
    group_.run_columns(pairs, rows_.size() * group_.hidden_width() * outputs_, [&](index_t begin, index_t end) {
      clear(y, begin * pair_columns, (std::min)(end * pair_columns, outputs_));
      for (index_t a = 0; a < m_.active.size(); ++a) {
        const Expert& expert = expert_of(m_.active[a].expert);
        const bool is_last = a + 1 == m_.active.size();
        const panel_pair next = is_last ? neighbours(expert.last_map(), end - 1)
                                        : neighbours(expert_of(m_.active[a + 1].expert).last_map(), begin);
        output_of({m_.active[a], begin, end}, expert, next,
                  [&](index_t row, index_t column, const scalar* sums) { add_output(expert, row, column, sums, y); });
      }
    });
  }
  /// take(row, column, sums) for every row of the expert and every vector of the task's columns.
  template <typename Take>
  void output_of(const task& t, const Expert& expert, const panel_pair& next, Take&& take) {
    const auto& map = expert.last_map();
    const kernel::row_blocks rows = group_.blocks_of(t.own);
    kernel::multiply_panels<last_storage>(
        map.format(), group_.packed_hidden(rows, map.inputs()), rows, t.begin, t.end, [&](index_t q) { return q < t.end ? neighbours(map, q) : next; },
        [&](index_t b, index_t q, const sums_t& sums) {
          for (std::size_t v = 0; v < kernel::tile_vectors; ++v) {
            const index_t column = (q * kernel::tile_vectors + static_cast<index_t>(v)) * lanes;
            if (column >= outputs_) return;
            for (index_t i = 0; i < rows.size(b); ++i) take(rows.begin(b) + i, column, sums[v] + i * lanes);
          }
        });
  }

  void whole_experts(tokens_in<scalar> x, tokens_out<scalar> y, const auto& expert_of) {
    const auto waiting = [&](index_t row) {
      return m_.outputs.data() + (row - rows_.begin()) * output_pitch(outputs_);
    };
    group_.run_whole([&](const active_rows& own) {
      const Expert& expert = expert_of(own.expert);
      const index_t blocks = group_.blocks_of(own).count();
      const index_t pairs = (expert.last_map().panels() + 1) / 2;
      pack_inputs_of({own, 0, blocks}, x, expert);
      if constexpr (maps > 0) {
        hidden_of({own, 0, group_.pairs_of(expert)}, expert);
        if constexpr (!is_direct) pack_hidden_of({own, 0, blocks}, expert);
      }
      output_of({own, 0, pairs}, expert, neighbours(expert.last_map(), pairs - 1),
                [&](index_t row, index_t column, const scalar* sums) {
                  kernel::store<scalar>(waiting(row) + column, kernel::load(sums));
                });
    });
    clear(y, 0, outputs_);
    for (const active_rows& own : m_.active)
      for (index_t row = own.begin; row < own.end; ++row)
        for (index_t column = 0; column < outputs_; column += lanes)
          add_output(expert_of(own.expert), row, column, waiting(row) + column, y);
  }

  /// Routed rows are added to what y holds.
  void clear(tokens_out<scalar>& y, index_t begin, index_t end) const {
    if (rows_.is_routed) return;
    for (index_t i = rows_.begin(); i < rows_.end(); ++i) std::fill_n(&y(i, begin), end - begin, scalar(0));
  }

  void add_output(const Expert& expert, index_t row, index_t column, const scalar* sums, tokens_out<scalar>& y) const {
    kernel::simd<scalar> sum = kernel::load(sums);
    if (const scalar* bias = expert.output_bias(); bias != nullptr) sum = sum + kernel::load(bias + column);
    kernel::add_weighted(rows_.weight(row), sum, outputs_ - column, &y(rows_.token(row), column));
  }

  routed_rows<scalar> rows_;
  index_t inputs_;
  index_t outputs_;
  memory& m_;
  grouped_rows<Expert> group_;
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
