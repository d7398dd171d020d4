/// Runs all feed-forward experts of a bank at once: gather and pack, first maps with the activation, last map added
/// into y.
///
///   pack     rows of x, gathered by expert, in blocks as tiles read them               tasks: blocks of rows
///   hidden   h = activate(x W_first^T) of all rows, written packed for what follows    tasks: expert x panels of W_first
///   output   y[target] += weight * (h W_last^T + b)                                    tasks: columns of y, all experts
///
/// An output task owns its columns of y and goes through the experts in order: no second pass combines, nothing is
/// atomic, and a token's sum has one order. Neither how tasks are cut (expert/grouped_rows.hpp) nor the other rows of
/// the batch change a bit of a row's result.
///
/// Where the hidden units of an expert come of one pair of panels, as in low-rank experts, the first two stages are one
/// and its tasks are blocks of rows.
///
/// In a small batch handing out tasks three times costs more than it gains. There a task is an expert, from its tokens
/// to its outputs, which wait until all are there and are then added up in the same order: equal bits.
///
/// Where storages are chosen at run time, a task asks once which it has (visit_map): packing, first maps and the last
/// one are compiled once a storage each, never for a first one together with a last one. First maps of one storage
/// meet in one tile; else, or where a storage has a state a map, each runs alone and the sums of the first wait in
/// the place of h.
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
    index_t row = has_rows ? number * full_rows::pitch(hidden) : 0;
    if (maps > 0) row += static_cast<index_t>(memory::x_places) * memory::first_memory::row_bytes(inputs);
    row += memory::last_memory::row_bytes(hidden);
    return rows * row + number * waiting_outputs(rows, outputs) +
           (std::min)(rows, experts) * static_cast<index_t>(sizeof(active_rows));
  }

  /// Makes room for this many rows, whoever gets them; `hidden` is the largest width. Packed inputs come last: where
  /// they have room, everything has.
  static void reserve(memory& m, index_t rows, index_t experts, index_t inputs, index_t hidden, index_t outputs) {
    m.active.reserve((std::min)(rows, experts));
    m.outputs.reserve(waiting_outputs(rows, outputs));
    if (has_rows) m.h_rows.reserve(rows * full_rows::pitch(hidden));
    if (m.keep)
      for (auto& z : m.z) z.reserve(rows * full_rows::pitch(hidden));
    m.h.reserve(rows, hidden);
    if (maps > 0)
      for (std::size_t place = memory::x_places; place-- > 0;) m.x[place].reserve(rows, inputs);
  }
  static bool has_room(const memory& m, index_t rows, index_t inputs) {
    return maps == 0 ? m.h.has_room(rows, inputs) : m.x[0].has_room(rows, inputs);
  }

  void run(tokens_in<scalar> x, tokens_out<scalar> y, const auto& expert_of) {
    make_room();
    if (group_.suits_whole_experts(output_pitch(outputs_))) {
      whole_experts(x, y, expert_of);
      return;
    }
    if (!thin_hidden(x, expert_of)) {
      pack_inputs(x, expert_of);
      hidden(expert_of);
    }
    output(y, expert_of);
  }

  /// Makes h and z again from the packed rows, bit for bit, where backward has used z up.
  void restore(const auto& expert_of) {
    if (!m_.is_spent) return;
    m_.is_spent = false;
    hidden(expert_of);
  }

private:
  using full_rows = kernel::packed_rows<full_precision<scalar>>;
  using active_rows = typename memory::active_rows;
  using task = typename memory::task;
  using panel_pair = kernel::streams<const std::byte*>;
  using sums_t = kernel::streams<const scalar*>;
  /// Whether hidden units may have to wait in rows until they are packed.
  static constexpr bool has_rows = maps > 0 && !memory::last_memory::all_numbers;

  /// Panels 2q and 2q + 1 of a map; an odd last panel stands twice, and its copy's sums are not used.
  static panel_pair neighbours(const PanelledMap auto& map, index_t q) {
    return {map.panel(2 * q), map.panel((std::min)(2 * q + 1, map.panels() - 1))};
  }
  static panel_pair last_panels(const Expert& expert, index_t q) {
    return visit_map(expert.last_map(), [q](const auto& map) { return neighbours(map, q); });
  }

  static index_t output_pitch(index_t outputs) { return (outputs + lanes - 1) / lanes * lanes; }
  /// A smaller batch may take the other road, and must not allocate then.
  static index_t waiting_outputs(index_t rows, index_t outputs) {
    return (std::min)(rows * output_pitch(outputs), whole_experts_outputs);
  }

  void make_room() {
    const index_t rows = rows_.size(), hidden = group_.hidden_width();
    m_.outputs.resize(waiting_outputs(rows, outputs_));
    if constexpr (maps > 0)
      for (auto& x : m_.x) x.resize(rows, inputs_);
    if constexpr (has_rows) m_.h_rows.resize(rows * full_rows::pitch(hidden));
    m_.h.resize(rows, hidden);
    for (auto& z : m_.z) z.resize(m_.keep ? rows * full_rows::pitch(hidden) : 0);
    m_.is_spent = false;
  }

  /// pack_inputs and hidden in one, where all hidden units come of one pair of panels, as those of low-rank experts do:
  /// packing a row is then a large part of the work on it. A few blocks are packed and multiplied while they are in a
  /// cache close by; where nobody needs them afterwards, the next ones take their place. Tasks are blocks of rows.
  /// False, and nothing done, where there are more panels.
  bool thin_hidden(tokens_in<scalar> x, const auto& expert_of) {
    if constexpr (maps == 1 && !has_rows) {
      if (group_.hidden_width() > lanes * kernel::tile_vectors) return false;
      constexpr index_t together = 2;
      const bool passing = group_.is_alone() && !m_.keep;
      group_.run_tasks([&](const active_rows& own) { return group_.blocks_of(own).count(); },
                       [&](const active_rows& own) {
                         return group_.blocks_of(own).height() * inputs_ * lanes * kernel::tile_vectors;
                       },
                       [&](const task& t) {
                         const Expert& expert = expert_of(t.own.expert);
                         for (index_t b = t.begin; b < t.end; b += together) {
                           const kernel::block_range some{b, (std::min)(b + together, t.end)};
                           pack_inputs_of({t.own, some.begin, some.end}, x, expert, passing);
                           hidden_of({t.own, 0, group_.pairs_of(expert)}, expert, some, passing);
                         }
                       });
      return true;
    } else {
      return false;
    }
  }

  /// The packed inputs of an expert's rows from this block on.
  template <typename Storage>
  kernel::packed_rows<Storage> inputs_of(const kernel::row_blocks& rows, index_t first_block, std::size_t place,
                                         bool passing) const {
    return passing ? group_.template passing_inputs<Storage>(rows.begin(first_block), place)
                   : group_.template packed_inputs<Storage>(rows, place);
  }

  void pack_inputs(tokens_in<scalar> x, const auto& expert_of) {
    group_.run_tasks([&](const active_rows& own) { return group_.blocks_of(own).count(); },
                     [&](const active_rows& own) { return group_.blocks_of(own).height() * inputs_; },
                     [&](const task& t) { pack_inputs_of(t, x, expert_of(t.own.expert)); });
  }
  /// With `passing` in front of the memory, for who needs them until the next are packed.
  void pack_inputs_of(const task& t, tokens_in<scalar> x, const Expert& expert, bool passing = false) {
    const kernel::row_blocks rows = group_.blocks_of(t.own);
    const auto row_of = [&](index_t i) { return x.data() + rows_.token(i) * x.outerStride(); };
    const auto scale_of = [&](index_t i) { return rows_.input_scale(i); };
    const auto pack = [&](const auto& map, const auto& packed) {
      for (index_t b = t.begin; b < t.end; ++b) kernel::pack_block(map.format(), packed, rows, b, row_of, scale_of);
    };
    if constexpr (maps == 0) {
      visit_map(expert.last_map(), [&](const auto& map) {
        pack(map, group_.template packed_hidden<storage_of_map<decltype(map)>>(rows, inputs_));
      });
    } else {
      const auto pack_for = [&](const auto& any, std::size_t place) {
        visit_map(any, [&](const auto& map) {
          pack(map, inputs_of<storage_of_map<decltype(map)>>(rows, t.begin, place, passing));
        });
      };
      pack_for(expert.first_map(0), 0);
      if constexpr (maps == 2)
        if (group_.second_place(expert) == 1) pack_for(expert.first_map(1), 1);
    }
  }

  void hidden(const auto& expert_of) {
    if constexpr (maps > 0) {
      group_.run_tasks([&](const active_rows& own) { return group_.pairs_of(expert_of(own.expert)); },
                       [&](const active_rows& own) { return own.size() * inputs_ * lanes * kernel::tile_vectors; },
                       [&](const task& t) { hidden_of(t, expert_of(t.own.expert)); });
      if constexpr (has_rows) pack_hidden(expert_of);
    }
  }
  void hidden_of(const task& t, const Expert& expert) {
    hidden_of(t, expert, {0, group_.blocks_of(t.own).count()}, false);
  }
  /// Of some blocks of the expert's rows, whose inputs lie as pack_inputs_of has put them.
  void hidden_of(const task& t, const Expert& expert, const kernel::block_range& blocks, bool passing) {
    using vector = kernel::simd<scalar>;
    const kernel::row_blocks rows = group_.blocks_of(t.own);
    const kernel::number_rows<scalar> h = group_.hidden_numbers(expert, rows);
    const index_t width = expert.last_map().inputs();
    // Panel p of block b, where z_of(i) are the sums of row i. Addresses once: stores might change what they are made
    // of, for all a compiler knows.
    const auto activate = [&](index_t b, index_t p, const auto& z_of) {
      scalar* const to = h.panel(rows, b, 0, p);
      std::array<scalar*, as_size(maps)> kept{};
      if (m_.keep)
        for (std::size_t map = 0; map < maps; ++map) kept[map] = group_.packed_z(map, rows, width).panel(rows, b, 0, p);
      for (index_t i = 0, size = rows.size(b), step = h.row_step(); i < size; ++i) {
        const std::array<vector, as_size(maps)> z = z_of(i);
        kernel::store<scalar>(to + i * step, expert.activate(p * lanes, z));
        for (std::size_t map = 0; map < maps; ++map)
          if (kept[map] != nullptr) kernel::store<scalar>(kept[map] + i * lanes, z[map]);
      }
    };
    const auto sums_at = [](const scalar* sums, index_t i) { return kernel::load(sums + i * lanes); };
    if constexpr (maps == 1) {
      multiply_alone(expert.first_map(0), 0, rows, blocks, passing, 2 * t.begin,
                     (std::min)(2 * t.end, expert.first_map(0).panels()), [&](index_t b, index_t p, const scalar* z) {
                       activate(b, p, [&](index_t i) { return std::array{sums_at(z, i)}; });
                     });
    } else {
      const auto together = [&](index_t b, index_t q, const sums_t& z) {
        activate(b, q, [&](index_t i) { return std::array{sums_at(z[0], i), sums_at(z[1], i)}; });
      };
      auto&& any_first = expert.first_map(0);
      auto&& any_second = expert.first_map(1);
      [[maybe_unused]] const bool is_done = visit_map(any_first, [&](const auto& first) {
        const auto* second = map_like(first, any_second);
        if (second == nullptr) return false;
        kernel::multiply_panels(
            first.format(), inputs_of<storage_of_map<decltype(first)>>(rows, blocks.begin, 0, passing), rows, blocks,
            t.begin, t.end,
            [&](index_t q) {
              const index_t p = (std::min)(q, t.end - 1);
              return panel_pair{first.panel(p), second->panel(p)};
            },
            together);
        return true;
      });
      using first_type = std::remove_cvref_t<decltype(any_first)>;
      using second_type = std::remove_cvref_t<decltype(any_second)>;
      if constexpr (!are_always_alike<first_type, second_type>()) {
        if (is_done) return;
        multiply_alone(any_first, 0, rows, blocks, passing, t.begin, t.end, [&](index_t b, index_t p, const scalar* z) {
          for (index_t i = 0; i < rows.size(b); ++i) kernel::store<scalar>(h.panel(rows, b, i, p), sums_at(z, i));
        });
        multiply_alone(any_second, group_.second_place(expert), rows, blocks, passing, t.begin, t.end,
                       [&](index_t b, index_t p, const scalar* z) {
                         const scalar* const first = h.panel(rows, b, 0, p);
                         activate(b, p, [&, step = h.row_step()](index_t i) {
                           return std::array{kernel::load(first + i * step), sums_at(z, i)};
                         });
                       });
      }
    }
  }
  /// Whether map_like finds one, whichever maps of these types they are.
  template <LinearMap First, LinearMap Second>
  static constexpr bool are_always_alike() {
    if constexpr (PanelledMap<First> && std::same_as<First, Second>)
      return std::is_empty_v<typename First::storage>;
    else
      return false;
  }
  /// The map `any` if it may meet `map` in one tile: if it is of the same storage, which has no state.
  template <PanelledMap Map>
  static const Map* map_like(const Map&, const LinearMap auto& any) {
    using storage = typename Map::storage;
    if constexpr (!std::is_empty_v<storage>)
      return nullptr;
    else if constexpr (std::same_as<Map, std::remove_cvref_t<decltype(any)>>)
      return &any;
    else
      return any.template get_if<storage>();
  }
  /// take(b, p, sums) for all blocks of rows and the panels begin .. end of one map.
  template <typename Take>
  void multiply_alone(const LinearMap auto& any, std::size_t place, const kernel::row_blocks& rows,
                      const kernel::block_range& blocks, bool passing, index_t begin, index_t end, const Take& take) {
    const auto take_pair = [&](index_t b, index_t q, const sums_t& sums) {
      for (index_t v = 0; v < kernel::tile_vectors; ++v)
        if (const index_t p = begin + 2 * q + v; p < end) take(b, p, sums[as_size(v)]);
    };
    const index_t pairs = (end - begin + 1) / 2;
    visit_map(any, [&](const auto& map) {
      kernel::multiply_panels(
          map.format(), inputs_of<storage_of_map<decltype(map)>>(rows, blocks.begin, place, passing), rows, blocks, 0,
          pairs,
          [&](index_t q) {
            const index_t p = begin + 2 * (std::min)(q, pairs - 1);
            return panel_pair{map.panel(p), map.panel((std::min)(p + 1, end - 1))};
          },
          take_pair);
    });
  }

  void pack_hidden(const auto& expert_of) {
    group_.run_tasks(
        [&](const active_rows& own) {
          return group_.is_direct(expert_of(own.expert)) ? 0 : group_.blocks_of(own).count();
        },
        [&](const active_rows& own) { return group_.blocks_of(own).height() * group_.hidden_width(); },
        [&](const task& t) { pack_hidden_of(t, expert_of(t.own.expert)); });
  }
  void pack_hidden_of(const task& t, const Expert& expert) {
    if (group_.is_direct(expert)) return;
    const kernel::row_blocks rows = group_.blocks_of(t.own);
    const kernel::number_rows<scalar> h = group_.hidden_numbers(expert, rows);
    visit_map(expert.last_map(), [&](const auto& map) {
      using storage = storage_of_map<decltype(map)>;
      for (index_t b = t.begin; b < t.end; ++b)
        kernel::pack_block(
            map.format(), group_.template packed_hidden<storage>(rows, map.inputs()), rows, b,
            [&](index_t i) { return h.panel(rows, b, i - rows.begin(b), 0); }, [](index_t) { return scalar(1); });
    });
  }

  void output(tokens_out<scalar> y, const auto& expert_of) {
    constexpr index_t pair_columns = lanes * kernel::tile_vectors;
    const index_t pairs = (outputs_ + pair_columns - 1) / pair_columns;
    group_.run_columns(pairs, rows_.size() * group_.hidden_width() * outputs_, [&](index_t begin, index_t end) {
      clear(y, begin * pair_columns, (std::min)(end * pair_columns, outputs_));
      for (index_t a = 0; a < m_.active.size(); ++a) {
        const Expert& expert = expert_of(m_.active[a].expert);
        const bool is_last = a + 1 == m_.active.size();
        const panel_pair next =
            is_last ? last_panels(expert, end - 1) : last_panels(expert_of(m_.active[a + 1].expert), begin);
        output_of({m_.active[a], begin, end}, expert, next,
                  [&](index_t row, index_t column, const scalar* sums) { add_output(expert, row, column, sums, y); });
      }
    });
  }
  /// take(row, column, sums) for every row of the expert and every vector of the task's columns.
  template <typename Take>
  void output_of(const task& t, const Expert& expert, const panel_pair& next, Take&& take) {
    const kernel::row_blocks rows = group_.blocks_of(t.own);
    const auto take_pair = [&](index_t b, index_t q, const sums_t& sums) {
      for (std::size_t v = 0; v < kernel::tile_vectors; ++v) {
        const index_t column = (q * kernel::tile_vectors + static_cast<index_t>(v)) * lanes;
        if (column >= outputs_) return;
        for (index_t i = 0; i < rows.size(b); ++i) take(rows.begin(b) + i, column, sums[v] + i * lanes);
      }
    };
    visit_map(expert.last_map(), [&](const auto& map) {
      kernel::multiply_panels(
          map.format(), group_.template packed_hidden<storage_of_map<decltype(map)>>(rows, map.inputs()), rows,
          {0, rows.count()}, t.begin, t.end, [&](index_t q) { return q < t.end ? neighbours(map, q) : next; },
          take_pair);
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
        if constexpr (has_rows) pack_hidden_of({own, 0, blocks}, expert);
      }
      output_of({own, 0, pairs}, expert, last_panels(expert, pairs - 1),
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
    scalar* const out = &y(rows_.target(row), column);
    // Of this row the columns after the next ones. Where the last map has few inputs, waiting for y is most of the
    // time.
    kernel::prefetch(out + 2 * kernel::tile_vectors * lanes);
    kernel::add_weighted(rows_.weight(row), sum, outputs_ - column, out);
  }

  routed_rows<scalar> rows_;
  index_t inputs_;
  index_t outputs_;
  memory& m_;
  grouped_rows<Expert> group_;
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
