/// All heads of all sequences of a quantised attention: what each of them sees, and where its gradients go.
///
/// A task is a head of a sequence, with a window and a cache of its own (codebook/attention/window_and_cache.hpp). Rows
/// of q, keys and values lie side by side by head, sequences one after the other. Sums that sequences share (biases,
/// the position term) are kept a task each, for whoever adds them up in order.
#pragma once

#include <sluice/codebook/attention/window_and_cache.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/vector_quantizer.hpp>
#include <sluice/kernel/row_norm.hpp>

#include <vector>

namespace sluice::inline SLUICE_ISA {

struct quantized_attention_options {
  index_t heads = 1;
  index_t key_width = 64;
  index_t value_width = 64;
  index_t codes = 512;
  index_t block = 512;       ///< L
  index_t window = 512;      ///< M, positions before the block that are seen one by one
  double commitment = 1e-4;  ///< weight of the commitment loss
  double length = 1e5;       ///< of the slowest feature of a distance
  moving_average_options averages{.decay = 0.99, .epsilon = 0, .least_size = 0.01};
};

namespace detail {

template <typename Scalar>
using key_quantizer = vector_quantizer<moving_average_codes<Scalar>, commitment_loss>;

template <typename Scalar, typename KeyMemory>
struct quantized_attention_memory {
  matrix_buffer<Scalar> biases;                        ///< [2, heads dk] of content and of position, scaled
  matrix_buffer<Scalar> queries, keys, values, gates;  ///< projections
  matrix_buffer<Scalar> q, k, v, coded, relative, attended, gated;
  typename unit_norm<Scalar>::tape q_norm, k_norm;
  std::vector<KeyMemory> key;
  std::vector<head_memory<Scalar>> head;  ///< a sequence and head each
};
template <typename Scalar>
using quantized_attention_workspace = quantized_attention_memory<Scalar, typename key_quantizer<Scalar>::workspace>;
template <typename Scalar>
struct quantized_attention_tape : quantized_attention_memory<Scalar, typename key_quantizer<Scalar>::tape> {
  matrix_buffer<Scalar> dgated, dattended, dq, dk, dcoded, dvalues, dgates, dqueries, dkeys, drelative, parts;

  Scalar loss() const {
    Scalar sum = 0;
    for (const auto& one : this->key) sum += one.loss();
    return sum;
  }
};

/// Memory is a workspace or a tape of quantized_attention.
template <typename Scalar, typename Memory>
struct attention_heads {
  const quantized_attention_options& options;
  const std::vector<key_quantizer<Scalar>>& codebooks;
  Memory& m;
  const routing_context<Scalar>& context;

  index_t key_columns() const noexcept { return options.heads * options.key_width; }
  index_t value_columns() const noexcept { return options.heads * options.value_width; }
  index_t tasks() const { return context.sequence_count() * options.heads; }

  head_view<Scalar> operator[](index_t task) const {
    const index_t h = task % options.heads, first = h * options.key_width;
    const token_range s = context.sequence(task / options.heads, m.q.rows());
    auto& key = m.key[as_size(h)];
    return {.positions = s.size(),
            .key_width = options.key_width,
            .value_width = options.value_width,
            .codes = options.codes,
            .block = options.block,
            .window = options.window,
            .q = m.q.data() + s.begin * key_columns() + first,
            .k = m.coded.data() + s.begin * key_columns() + first,
            .v = m.v.data() + s.begin * value_columns() + h * options.value_width,
            .key_stride = key_columns(),
            .value_stride = value_columns(),
            .ids = key.ids.data() + s.begin,
            .table = codebooks[as_size(h)].codebook().table().data(),
            .u = m.biases.row(0) + first,
            .v_bias = m.biases.row(1) + first,
            .relative = m.relative.data() + first};
  }

  /// m.attended of m.q, m.coded and m.v; keeps what backward needs.
  void forward(bool keeps) const {
    m.attended.resize(m.q.rows(), value_columns());
    if (static_cast<index_t>(m.head.size()) < tasks()) m.head.resize(as_size(tasks()));
    context.executor.parallel_for(tasks(), [&](index_t task) {
      const auto view = (*this)[task];
      attention_head<Scalar> head(view, m.head[as_size(task)], keeps);
      head.forward(m.attended.data() + (view.v - m.v.data()));
    });
  }

  /// m.dq, m.dcoded and m.dvalues of m.dattended; in a row of m.parts a task's share of du, dv_bias and, for every
  /// distance, dr.
  void backward(index_t distances) const {
    const index_t dk = options.key_width;
    m.dq.set_zero(m.q.rows(), key_columns());
    m.dcoded.set_zero(m.q.rows(), key_columns());
    m.dvalues.set_zero(m.q.rows(), value_columns());
    m.parts.set_zero(tasks(), (distances + 2) * dk);
    context.executor.parallel_for(tasks(), [&](index_t task) {
      const auto view = (*this)[task];
      const auto key_place = view.q - m.q.data(), value_place = view.v - m.v.data();
      Scalar* part = m.parts.row(task);
      attention_head<Scalar>(view, m.head[as_size(task)], true)
          .backward(m.dattended.data() + value_place, {.dq = m.dq.data() + key_place,
                                                       .dk = m.dcoded.data() + key_place,
                                                       .dv = m.dvalues.data() + value_place,
                                                       .du = part,
                                                       .dv_bias = part + dk,
                                                       .drelative = part + 2 * dk});
    });
  }
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
