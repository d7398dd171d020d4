/// The way back through a bank of feed-forward experts, on the same tiles and on what grouped_forward kept.
///
///   pack       rows of dy twice: weighted, packed as rows; and as they are, one row a lane          tasks: blocks of rows
///   hidden     dh' = dy W_last;  dweight = <dh', h> (+ <dy, b>);  dz = activate'(weight dh')       tasks: expert x columns of h
///   gradients  dW_last += (weight dy)^T h;  dW_first += dz^T x                                      tasks: expert x panels
///   inputs     dx[token] += input_scale * sum over first maps of dz W_first                         tasks: columns of dx
///
/// dz takes the memory of z; a second call on the same forward first has grouped_forward make z again.
/// <dy, f(x)> = <dy W_last, h> + <dy, b>: so the gradient of a weight needs no output of the experts, and none is kept.
/// An inputs task owns its columns of dx and takes experts in order; every gradient has one owner and adds its rows in
/// order:
/// equal bits for any number of threads.
#pragma once

#include <sluice/expert/grouped_rows.hpp>
#include <sluice/kernel/vector_math.hpp>

namespace sluice::inline SLUICE_ISA {

/// A bank of such experts can be trained: dz from z and dh, adding the column's share of the gradients of biases and
/// scales. Maps whose weights are only read, or frozen, pass gradients on and get none themselves; a map with a
/// gradient shows its panels.
template <typename E>
concept MadeOfTrainableMaps = MadeOfLinearMaps<E> && requires(E& expert) {
  { expert.output_bias_gradient() } -> std::same_as<typename E::scalar*>;
  { expert.last_map().gradient_panel(index_t()) } -> std::same_as<typename E::scalar*>;
} && (E::first_maps == 0 || requires(E& expert, std::array<kernel::simd<typename E::scalar>, as_size(E::first_maps)>& z,
                                     const kernel::simd<typename E::scalar>& dh) {
  expert.activate_backward(index_t(), z, dh);
  { expert.first_map(0).gradient_panel(index_t()) } -> std::same_as<typename E::scalar*>;
});

namespace detail {

/// Whether maps of one of these storages may have gradients of their weights.
template <typename List>
inline constexpr bool may_learn = false;
template <typename... Storages>
inline constexpr bool may_learn<storage_list<Storages...>> = (is_trainable_storage<Storages> || ...);

/// sums[0 .. L) += v.
template <typename Scalar>
void add_lanes(Scalar* sums, const kernel::simd<Scalar>& v) {
  kernel::store<Scalar>(sums, kernel::load(sums) + v);
}

/// Rows in lanes: every expert that has rows may leave lanes of its last group unused.
template <MadeOfLinearMaps Expert>
index_t most_lane_rows(index_t rows, index_t experts) {
  constexpr index_t lanes = kernel::simd_width<typename Expert::scalar>;
  return (rows / lanes + (std::min)(rows, experts)) * lanes;
}

/// Bytes that training keeps beside the forward memory for this many rows: z, dz, and dy in both orders.
template <MadeOfLinearMaps Expert>
index_t grouped_training_bytes(index_t rows, index_t experts, index_t inputs, index_t hidden, index_t outputs) {
  using scalar = typename Expert::scalar;
  using packed = kernel::packed_rows<full_precision<scalar>>;
  constexpr index_t lanes = packed::lanes;
  const index_t lane_rows = most_lane_rows<Expert>(rows, experts);
  const index_t parts = ((std::max)(inputs, hidden) + 4 * lanes - 1) / (4 * lanes);
  const index_t numbers = rows * (Expert::first_maps * packed::pitch(hidden) + packed::pitch(outputs) + parts) +
                          lane_rows * (outputs + Expert::first_maps * hidden);
  return numbers * static_cast<index_t>(sizeof(scalar));
}

template <MadeOfTrainableMaps Expert>
class grouped_backward {
public:
  using scalar = typename Expert::scalar;
  using memory = grouped_memory<Expert>;

  template <typename ExpertOf>
  grouped_backward(const routed_rows<scalar>& rows, const ExpertOf& expert_of, index_t inputs, index_t outputs,
                   memory& m, const executor_ref& executor)
      : rows_(rows), inputs_(inputs), outputs_(outputs), m_(m), group_(rows, expert_of, inputs, m, executor) {}

  /// Makes room for this many rows, whoever gets them; dy comes last: where it has room, everything has.
  static void reserve(memory& m, index_t rows, index_t experts, index_t inputs, index_t hidden, index_t outputs) {
    const index_t in_lanes = most_lane_rows<Expert>(rows, experts);
    m.dy_lanes.reserve(in_lanes * outputs);
    for (auto& dz : m.dz_lanes) dz.reserve(in_lanes * hidden);
    m.dweight.reserve(column_units((std::max)(inputs, hidden)) * rows);
    m.dy.reserve(rows * packed::pitch(outputs));
  }
  static bool has_room(const memory& m, index_t rows, index_t outputs) {
    return m.dy.capacity() >= rows * packed::pitch(outputs);
  }

  /// Adds into dx and into the gradients of the experts; writes the gradients of weights and input scales, entry i for
  /// row i, where they are asked for. x is what forward was given (read for input scales only).
  void run(tokens_in<scalar> x, tokens_in<scalar> dy, tokens_out<scalar> dx, scalar* dweight, scalar* dinput_scale,
           const auto& expert_of) {
    pack_upstream(dy);
    if constexpr (maps > 0) {
      hidden(expert_of, dweight != nullptr);
      if (dweight != nullptr) add_up_parts(column_units(group_.hidden_width()), dweight);
    }
    gradients(expert_of);
    const bool with_inner = dinput_scale != nullptr || (maps == 0 && dweight != nullptr);
    input_gradients(x, dx, with_inner, expert_of);
    if constexpr (maps == 0) {
      // Without hidden units both come of <x, dy W_last>.
      scalar* const inner = dweight != nullptr ? dweight : dinput_scale;
      if (with_inner) add_up_parts(column_units(inputs_), inner);
      for (index_t i = rows_.begin(); with_inner && i < rows_.end(); ++i) {
        const scalar product = inner[i];
        if (dinput_scale != nullptr) dinput_scale[i] = rows_.weight(i) * product;
        if (dweight != nullptr) dweight[i] = rows_.input_scale(i) * product;
      }
    } else if (dinput_scale != nullptr) {
      add_up_parts(column_units(inputs_), dinput_scale);
    }
    if (dweight != nullptr) add_bias_shares(dy, dweight, expert_of);
  }

private:
  using full = full_precision<scalar>;
  using vector = kernel::simd<scalar>;
  using packed = kernel::packed_rows<full>;
  using lane_rows = kernel::lane_rows<scalar>;
  using active_rows = typename memory::active_rows;
  using task = typename memory::task;
  static constexpr index_t lanes = kernel::simd_width<scalar>;
  static constexpr int maps = Expert::first_maps;
  /// Columns and groups of rows that go through multiply_transposed together: their sums take 32 KB of stack at most.
  static constexpr index_t unit_columns = 4 * lanes;
  static constexpr index_t unit_groups = 8;

  static index_t column_units(index_t columns) { return (columns + unit_columns - 1) / unit_columns; }

  packed packed_upstream(const kernel::row_blocks& rows) {
    return {m_.dy.data() + (rows.first() - rows_.begin()) * packed::pitch(outputs_), nullptr, outputs_, rows.first()};
  }
  lane_rows upstream_lanes(const active_rows& own) {
    return {m_.dy_lanes.data() + own.lane_group * lanes * outputs_, outputs_};
  }
  lane_rows hidden_lanes(const active_rows& own, index_t map, index_t width) {
    return {m_.dz_lanes[as_size(map)].data() + own.lane_group * lanes * group_.hidden_width(), width};
  }
  index_t lane_groups() const {
    if (m_.active.empty()) return 0;
    const active_rows& last = m_.active[m_.active.size() - 1];
    return last.lane_group + lane_rows::groups(last.size());
  }

  void pack_upstream(tokens_in<scalar> dy) {
    m_.dy.resize(rows_.size() * packed::pitch(outputs_));
    m_.dy_lanes.resize(lane_groups() * lanes * outputs_);
    const auto upstream = [&](index_t i) { return dy.data() + rows_.target(i) * dy.outerStride(); };
    group_.run_tasks([&](const active_rows& own) { return group_.blocks_of(own).count(); },
                     [&](const active_rows& own) { return 2 * group_.blocks_of(own).height() * outputs_; },
                     [&](const task& t) {
                       const kernel::row_blocks rows = group_.blocks_of(t.own);
                       for (index_t b = t.begin; b < t.end; ++b)
                         kernel::pack_block(full(), packed_upstream(rows), rows, b, upstream,
                                            [&](index_t i) { return rows_.weight(i); });
                     });
    group_.run_tasks([&](const active_rows& own) { return lane_rows::groups(own.size()); },
                     [&](const active_rows&) { return 2 * lanes * outputs_; },
                     [&](const task& t) {
                       const kernel::row_blocks rows = group_.blocks_of(t.own);
                       for (index_t g = t.begin; g < t.end; ++g) {
                         const index_t first = rows.first() + g * lanes;
                         const index_t count = (std::min)(lanes, rows.first() + rows.rows() - first);
                         scalar* out = upstream_lanes(t.own).group(g);
                         std::array<const scalar*, static_cast<std::size_t>(lanes)> from;
                         for (index_t l = 0; l < count; ++l) from[static_cast<std::size_t>(l)] = upstream(first + l);
                         for (index_t k = 0; k < outputs_; ++k, out += lanes) {
                           for (index_t l = 0; l < count; ++l) out[l] = from[static_cast<std::size_t>(l)][k];
                           for (index_t l = count; l < lanes; ++l) out[l] = 0;
                         }
                       }
                     });
  }

  void hidden(const auto& expert_of, bool with_weights)
    requires(maps > 0)
  {
    for (auto& dz : m_.dz_lanes) dz.resize(lane_groups() * lanes * group_.hidden_width());
    // Experts narrower than the widest have fewer parts; theirs that are missing count as zero.
    if (with_weights) m_.dweight.assign(column_units(group_.hidden_width()) * rows_.size(), scalar(0));
    m_.is_spent = true;
    group_.run_tasks([&](const active_rows& own) { return column_units(expert_of(own.expert).last_map().inputs()); },
                     [&](const active_rows& own) { return own.size() * outputs_ * unit_columns; },
                     [&](const task& t) {
                       alignas(64) scalar sums[as_size(unit_groups * unit_columns * lanes)];
                       Expert& expert = expert_of(t.own.expert);
                       const index_t width = expert.last_map().inputs();
                       const index_t groups = lane_rows::groups(t.own.size());
                       for (index_t unit = t.begin; unit < t.end; ++unit) {
                         const index_t begin = unit * unit_columns;
                         const index_t end = (std::min)(begin + unit_columns, width);
                         for (index_t g = 0; g < groups; g += unit_groups) {
                           const index_t count = (std::min)(unit_groups, groups - g);
                           multiply_transposed(std::as_const(expert).last_map(), begin, end, upstream_lanes(t.own), g,
                                               count, sums, false);
                           for_each_row(t.own, g, count, [&](index_t i, index_t group, index_t lane) {
                             const scalar part = hidden_row(t.own, expert, i, begin, end, group, lane,
                                                            sums + (group - g) * (end - begin) * lanes);
                             if (with_weights) m_.dweight[unit * rows_.size() + i - rows_.begin()] = part;
                           });
                         }
                       }
                     });
  }

  /// f(row, group, lane) for the rows of an expert that lie in `count` groups.
  template <typename F>
  void for_each_row(const active_rows& own, index_t first_group, index_t count, F&& f) const {
    const kernel::row_blocks rows = group_.blocks_of(own);
    for (index_t r = first_group * lanes; r < (std::min)((first_group + count) * lanes, rows.rows()); ++r)
      f(rows.first() + r, r / lanes, r % lanes);
  }

  /// One row, columns begin .. end of h: dz in both orders from dh' [column][lane]; returns <dh', h>.
  scalar hidden_row(const active_rows& own, Expert& expert, index_t i, index_t begin, index_t end, index_t group,
                    index_t lane, const scalar* dh) {
    const kernel::row_blocks rows = group_.blocks_of(own);
    const index_t width = expert.last_map().inputs();
    const index_t b = (i - rows.first()) / rows.height();
    const index_t in_block = (i - rows.first()) % rows.height();
    const kernel::number_rows<scalar> hidden = group_.hidden_numbers(expert, rows);
    const auto place = [&](std::size_t m, index_t p) {
      return group_.packed_z(m, rows, width).panel(rows, b, in_block, p);
    };
    vector inner(scalar(0));
    for (index_t column = begin; column < end; column += lanes) {
      const index_t count = (std::min)(lanes, end - column);
      alignas(64) scalar upstream[as_size(lanes)] = {};
      for (index_t l = 0; l < count; ++l) upstream[l] = dh[(column - begin + l) * lanes + lane];
      const vector unweighted = kernel::load(upstream);
      const scalar* const h = hidden.panel(rows, b, in_block, column / lanes);
      inner = kernel::multiply_add<scalar>(unweighted, kernel::load(h), inner);
      std::array<vector, as_size(maps)> z;
      for (std::size_t m = 0; m < maps; ++m) z[m] = kernel::load(place(m, column / lanes));
      expert.activate_backward(column, z, unweighted * vector(rows_.weight(i)));
      for (std::size_t m = 0; m < maps; ++m) {
        scalar* natural = place(m, column / lanes);
        kernel::store<scalar>(natural, z[m]);
        scalar* out = hidden_lanes(own, static_cast<index_t>(m), width).group(group) + column * lanes + lane;
        for (index_t l = 0; l < count; ++l) out[l * lanes] = natural[l];
        if (i + 1 ==
            rows.first() + rows.rows())  // the lanes past the last row: nobody reads them, but they must be numbers
          for (index_t l = 0; l < count; ++l) std::fill(out + l * lanes + 1, out + (l + 1) * lanes - lane, scalar(0));
      }
    }
    return kernel::sum_lanes<scalar>(inner);
  }

  /// out[i] = sum over the parts of row i, in order.
  void add_up_parts(index_t parts, scalar* out) const {
    for (index_t i = 0; i < rows_.size(); ++i) {
      scalar sum = 0;
      for (index_t part = 0; part < parts; ++part) sum += m_.dweight[part * rows_.size() + i];
      out[rows_.begin() + i] = sum;
    }
  }

  void add_bias_shares(tokens_in<scalar> dy, scalar* dweight, const auto& expert_of) const {
    for (const active_rows& own : m_.active)
      if (const scalar* bias = expert_of(own.expert).output_bias(); bias != nullptr)
        for (index_t i = own.begin; i < own.end; ++i)
          dweight[i] += kernel::dot(dy.data() + rows_.target(i) * dy.outerStride(), bias, outputs_);
  }

  static void multiply_transposed(const LinearMap auto& any, index_t begin, index_t end, const lane_rows& dy,
                                  index_t first_group, index_t groups, scalar* sums, bool accumulate) {
    visit_map(any, [&](const auto& map) {
      kernel::multiply_transposed(map, begin, end, dy, first_group, groups, sums, accumulate);
    });
  }

  void gradients(const auto& expert_of) {
    const auto work = [](const active_rows& own, index_t width) {
      return own.size() * width * lanes * kernel::tile_vectors;
    };
    group_.run_tasks([&](const active_rows& own) { return (expert_of(own.expert).last_map().panels() + 1) / 2; },
                     [&](const active_rows& own) { return work(own, expert_of(own.expert).last_map().inputs()); },
                     [&](const task& t) {
                       Expert& expert = expert_of(t.own.expert);
                       auto&& map = expert.last_map();
                       const kernel::row_blocks rows = group_.blocks_of(t.own);
                       const packed dy = packed_upstream(rows);
                       for (index_t q = t.begin; q < t.end; ++q) {
                         if constexpr (may_learn<last_storages_of<Expert>>)
                           if (map.gradient_panel(2 * q) != nullptr)
                             add_neighbours(map, q, rows, group_.template packed_hidden<full>(rows, map.inputs()), dy);
                         if (scalar* bias = expert.output_bias_gradient())
                           add_column_sums(rows, dy, 2 * q, map.panels(), bias);
                       }
                     });
    if constexpr (maps > 0)
      if constexpr (may_learn<first_storages_of<Expert>>)
        group_.run_tasks([&](const active_rows& own) { return group_.pairs_of(expert_of(own.expert)); },
                         [&](const active_rows& own) { return work(own, inputs_); },
                         [&](const task& t) {
                           for (index_t q = t.begin; q < t.end; ++q) add_first(t, expert_of(t.own.expert), q);
                         });
  }
  void add_first(const task& t, Expert& expert, index_t q) {
    const kernel::row_blocks rows = group_.blocks_of(t.own);
    const auto x = [&](std::size_t place) { return group_.template packed_inputs<full>(rows, place); };
    const auto dz = [&](std::size_t m) { return group_.packed_z(m, rows, expert.last_map().inputs()); };
    if constexpr (maps == 2) {
      // A map that learns has read numbers, and so has one beside it that shares its place or has no gradient.
      scalar* const gate = expert.first_map(0).gradient_panel(q);
      scalar* const up = expert.first_map(1).gradient_panel(q);
      const std::size_t place = group_.second_place(expert);
      kernel::add_weight_gradient<scalar>(rows, x(0), {dz(0), dz(1)}, {q, q}, {gate, place == 0 ? up : nullptr});
      if (place != 0) kernel::add_weight_gradient<scalar>(rows, x(place), {dz(1), dz(1)}, {q, q}, {up, nullptr});
    } else if (expert.first_map(0).gradient_panel(2 * q) != nullptr) {
      add_neighbours(expert.first_map(0), q, rows, x(0), dz(0));
    }
  }

  static void add_neighbours(auto&& map, index_t q, const kernel::row_blocks& rows, const packed& x, const packed& dy) {
    const index_t second = (std::min)(2 * q + 1, map.panels() - 1);
    kernel::add_weight_gradient<scalar>(
        rows, x, {dy, dy}, {2 * q, second},
        {map.gradient_panel(2 * q), second == 2 * q ? nullptr : map.gradient_panel(second)});
  }

  static void add_column_sums(const kernel::row_blocks& rows, const packed& dy, index_t first, index_t panels,
                              scalar* sums) {
    for (index_t p = first; p < (std::min)(first + 2, panels); ++p)
      for (index_t b = 0; b < rows.count(); ++b)
        for (index_t i = 0; i < rows.size(b); ++i)
          add_lanes<scalar>(sums + p * lanes, kernel::load(dy.panel(rows, b, i, p)));
  }

  void input_gradients(tokens_in<scalar> x, tokens_out<scalar>& dx, bool with_scales, const auto& expert_of) {
    if (with_scales) m_.dweight.assign(column_units(inputs_) * rows_.size(), scalar(0));
    group_.run_columns(column_units(inputs_), (std::max)(maps, 1) * rows_.size() * group_.hidden_width() * inputs_,
                       [&](index_t first_unit, index_t last_unit) {
                         alignas(64) scalar sums[as_size(unit_groups * unit_columns * lanes)];
                         for (const active_rows& own : m_.active)
                           for (index_t unit = first_unit; unit < last_unit; ++unit) {
                             const Expert& expert = expert_of(own.expert);
                             const index_t begin = unit * unit_columns;
                             const index_t end = (std::min)(begin + unit_columns, inputs_);
                             const index_t groups = lane_rows::groups(own.size());
                             for (index_t g = 0; g < groups; g += unit_groups) {
                               const index_t count = (std::min)(unit_groups, groups - g);
                               if constexpr (maps == 0)
                                 multiply_transposed(expert.last_map(), begin, end, upstream_lanes(own), g, count, sums,
                                                     false);
                               else
                                 for (int m = 0; m < maps; ++m)
                                   multiply_transposed(expert.first_map(m), begin, end,
                                                       hidden_lanes(own, m, expert.last_map().inputs()), g, count, sums,
                                                       m > 0);
                               for_each_row(own, g, count, [&](index_t i, index_t group, index_t lane) {
                                 const scalar* row = sums + (group - g) * (end - begin) * lanes + lane;
                                 const scalar scale = rows_.input_scale(i) * (maps == 0 ? rows_.weight(i) : scalar(1));
                                 scalar* out = &dx(rows_.token(i), begin);
                                 for (index_t c = 0; c < end - begin; ++c) out[c] += scale * row[c * lanes];
                                 if (!with_scales) return;
                                 const scalar* in = x.data() + rows_.token(i) * x.outerStride() + begin;
                                 scalar inner = 0;
                                 for (index_t c = 0; c < end - begin; ++c) inner += in[c] * row[c * lanes];
                                 m_.dweight[unit * rows_.size() + i - rows_.begin()] = inner;
                               });
                             }
                           }
                       });
  }

  routed_rows<scalar> rows_;
  index_t inputs_;
  index_t outputs_;
  memory& m_;
  grouped_rows<Expert> group_;
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
