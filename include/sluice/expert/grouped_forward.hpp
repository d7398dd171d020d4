/// Runs all feed-forward experts of a bank at once: gather and pack, first maps with the activation, last map added into y.
///
///   pack     rows of x, gathered by expert, in blocks as tiles read them               tasks: blocks of rows
///   hidden   h = activate(x W_first^T) of all rows, written packed for what follows    tasks: expert x panels of W_first
///   output   y[token] += weight * (h W_last^T + b)                                     tasks: columns of y, all experts
///
/// An output task owns its columns of y and goes through the experts in order: no second pass combines, nothing is atomic, and
/// a token's sum has one order. Neither how tasks are cut (expert/grouped_rows.hpp) nor the other rows of the batch change a bit
/// of a row's result.
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
  using storage = typename Expert::storage;
  using memory = grouped_memory<Expert>;
  static constexpr index_t lanes = kernel::simd_width<scalar>;
  static constexpr int maps = Expert::first_maps;
  /// Whether h is packed number by number, so that it can be written in its place at once.
  static constexpr bool is_direct =
      std::same_as<typename storage::activation, scalar> && !kernel::detail::scales_rows<storage>;

  /// expert_of(e) is expert e.
  template <typename ExpertOf>
  grouped_forward(const routed_rows<scalar>& rows, const ExpertOf& expert_of, index_t inputs, index_t outputs,
                  memory& m, const executor_ref& executor)
      : rows_(rows), inputs_(inputs), outputs_(outputs), m_(m), group_(rows, expert_of, inputs, m, executor) {}

  /// Bytes that x and h take for this many rows, without the list of tasks.
  static index_t bytes(index_t rows, index_t experts, index_t inputs, index_t hidden) {
    constexpr auto unit = static_cast<index_t>(sizeof(typename storage::activation));
    constexpr auto number = static_cast<index_t>(sizeof(scalar));
    using packed = kernel::packed_rows<storage>;
    index_t row = unit * (packed::pitch(inputs) + packed::pitch(hidden));
    if constexpr (!is_direct) row += number * kernel::packed_rows<full_precision<scalar>>::pitch(hidden);
    if constexpr (kernel::detail::scales_rows<storage>) row += 2 * number;
    return rows * row + experts * static_cast<index_t>(sizeof(index_t));
  }

  void run(tokens_in<scalar> x, tokens_out<scalar> y, const auto& expert_of) {
    pack_inputs(x);
    hidden(expert_of);
    if constexpr (!is_direct) pack_hidden(expert_of);
    output(y, expert_of);
  }

private:
  using element = typename storage::element;
  using panel_pair = kernel::streams<const element*>;
  using sums_t = kernel::streams<const scalar*>;

  /// Panels 2q and 2q + 1 of a map; an odd last panel stands twice, and its copy's sums are not used.
  static panel_pair neighbours(const linear_map<storage>& map, index_t q) {
    return {map.panel(2 * q), map.panel(std::min(2 * q + 1, map.panels() - 1))};
  }
  static panel_pair first_panels(const Expert& expert, index_t q) {
    if constexpr (maps == 2)
      return {expert.first_map(0).panel(q), expert.first_map(1).panel(q)};
    else
      return neighbours(expert.first_map(0), q);
  }

  void pack_inputs(tokens_in<scalar> x) {
    m_.x.resize(rows_.size() * kernel::packed_rows<storage>::pitch(inputs_));
    if constexpr (kernel::detail::scales_rows<storage>) m_.x_factors.resize(rows_.size());
    const auto packed = group_.packed_inputs();
    group_.run_tasks([&](index_t e) { return group_.blocks_of(e).count(); },
                     [&](index_t e) { return group_.blocks_of(e).height() * inputs_; },
                     [&](const typename memory::task& t) {
                       for (index_t b = t.begin; b < t.end; ++b)
                         kernel::pack_block(
                             packed, group_.blocks_of(t.expert), b,
                             [&](index_t i) { return x.data() + rows_.token(i) * x.outerStride(); },
                             [&](index_t i) { return rows_.input_scale(i); });
                     });
  }

  void hidden(const auto& expert_of) {
    m_.h.resize(rows_.size() * kernel::packed_rows<storage>::pitch(group_.hidden_width()));
    if constexpr (!is_direct)
      m_.h_rows.resize(rows_.size() * kernel::packed_rows<full_precision<scalar>>::pitch(group_.hidden_width()));
    for (auto& z : m_.z)
      z.resize(m_.keep ? rows_.size() * kernel::packed_rows<full_precision<scalar>>::pitch(group_.hidden_width()) : 0);
    const auto x = group_.packed_inputs();
    group_.run_tasks([&](index_t e) { return group_.pairs_of(expert_of(e)); },
                     [&](index_t e) { return rows_.load(e) * inputs_ * lanes * kernel::tile_vectors; },
                     [&](const typename memory::task& t) {
                       const Expert& expert = expert_of(t.expert);
                       const kernel::row_blocks rows = group_.blocks_of(t.expert);
                       for (index_t first = 0; first < rows.count(); first += kernel::chunk_blocks) {
                         const index_t last = std::min(first + kernel::chunk_blocks, rows.count());
                         kernel::multiply_panels<storage>(
                             x, rows, first, last, t.begin, t.end,
                             [&](index_t q) { return first_panels(expert, std::min(q, t.end - 1)); },
                             [&](index_t b, index_t q, const sums_t& z) { activate(expert, rows, b, q, z); });
                       }
                     });
  }

  void activate(const Expert& expert, const kernel::row_blocks& rows, index_t b, index_t q, const sums_t& sums) {
    using vector = kernel::simd<scalar>;
    const index_t width = expert.last_map().inputs();
    const auto to = group_.template packed_hidden<full_precision<scalar>>(hidden_numbers(), rows, width);
    const index_t panels = (width + lanes - 1) / lanes;
    const auto place = [&](index_t i, index_t p) {
      if constexpr (is_direct)
        return to.panel(rows, b, i, p);
      else
        return to.units +
               (rows.begin(b) + i - rows.first()) * kernel::packed_rows<full_precision<scalar>>::pitch(width) +
               p * lanes;
    };
    const auto one = [&](index_t i, index_t p, const std::array<vector, maps>& z) {
      kernel::store<scalar>(place(i, p), expert.activate(p * lanes, z));
      if (m_.keep)
        for (std::size_t map = 0; map < maps; ++map)
          kernel::store<scalar>(
              group_.template packed_hidden<full_precision<scalar>>(m_.z[map], rows, width).panel(rows, b, i, p),
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

  auto& hidden_numbers() {
    if constexpr (is_direct)
      return m_.h;
    else
      return m_.h_rows;
  }

  void pack_hidden(const auto& expert_of) {
    if constexpr (kernel::detail::scales_rows<storage>) m_.h_factors.resize(rows_.size());
    group_.run_tasks([&](index_t e) { return group_.blocks_of(e).count(); },
                     [&](index_t e) { return group_.blocks_of(e).height() * group_.hidden_width(); },
                     [&](const typename memory::task& t) {
                       const kernel::row_blocks rows = group_.blocks_of(t.expert);
                       const index_t width = expert_of(t.expert).last_map().inputs();
                       const auto flat = group_.template packed_hidden<full_precision<scalar>>(m_.h_rows, rows, width);
                       for (index_t b = t.begin; b < t.end; ++b)
                         kernel::pack_block(
                             group_.template packed_hidden<storage>(m_.h, rows, width, m_.h_factors.data()), rows, b,
                             [&](index_t i) {
                               return flat.units +
                                      (i - rows.first()) * kernel::packed_rows<full_precision<scalar>>::pitch(width);
                             },
                             [](index_t) { return scalar(1); });
                     });
  }

  void output(tokens_out<scalar> y, const auto& expert_of) {
    const index_t y_begin = rows_.is_routed ? 0 : rows_.begin();
    const index_t y_end = rows_.is_routed ? y.rows() : rows_.end();
    constexpr index_t pair_columns = lanes * kernel::tile_vectors;
    const index_t pairs = (outputs_ + pair_columns - 1) / pair_columns;
    group_.run_columns(pairs, rows_.size() * group_.hidden_width() * outputs_, [&](index_t begin, index_t end) {
      const index_t column = begin * pair_columns;
      for (index_t t = y_begin; t < y_end; ++t)
        std::fill_n(&y(t, column), std::min(end * pair_columns, outputs_) - column, scalar(0));
      for (index_t a = 0; a < m_.active.size(); ++a) {
        const Expert& expert = expert_of(m_.active[a]);
        const auto& map = expert.last_map();
        const kernel::row_blocks rows = group_.blocks_of(m_.active[a]);
        const auto h = group_.template packed_hidden<storage>(m_.h, rows, map.inputs(), m_.h_factors.data());
        for (index_t first = 0; first < rows.count(); first += kernel::chunk_blocks) {
          const index_t last = std::min(first + kernel::chunk_blocks, rows.count());
          kernel::multiply_panels<storage>(
              h, rows, first, last, begin, end,
              [&](index_t q) {
                if (q < end) return neighbours(map, q);
                const index_t after = std::min(a + 1, m_.active.size() - 1);
                return neighbours(expert_of(m_.active[after]).last_map(), begin);
              },
              [&](index_t b, index_t q, const sums_t& sums) { add_outputs(expert, rows, b, q, sums, y); });
        }
      }
    });
  }

  void add_outputs(const Expert& expert, const kernel::row_blocks& rows, index_t b, index_t q, const sums_t& sums,
                   tokens_out<scalar>& y) const {
    const scalar* bias = expert.output_bias();
    for (std::size_t v = 0; v < kernel::tile_vectors; ++v) {
      const index_t column = (q * kernel::tile_vectors + static_cast<index_t>(v)) * lanes;
      const index_t count = std::min(lanes, outputs_ - column);
      if (count <= 0) return;
      for (index_t i = 0; i < rows.size(b); ++i) {
        const scalar weight = rows_.weight(rows.begin(b) + i);
        if (weight == scalar(0)) continue;  // an unused expert's infinity must not reach a token
        scalar* out = &y(rows_.token(rows.begin(b) + i), column);
        kernel::simd<scalar> sum = kernel::load(sums[v] + i * lanes);
        if (bias != nullptr) sum = sum + kernel::load(bias + column);
        if (count == lanes) {
          kernel::store<scalar>(out,
                                kernel::multiply_add<scalar>(kernel::simd<scalar>(weight), sum, kernel::load(out)));
        } else {
          alignas(64) scalar numbers[lanes];
          kernel::store<scalar>(numbers, kernel::simd<scalar>(weight) * sum);
          for (index_t j = 0; j < count; ++j) out[j] += numbers[j];
        }
      }
    }
  }

  routed_rows<scalar> rows_;
  index_t inputs_;
  index_t outputs_;
  memory& m_;
  grouped_rows<Expert> group_;
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
