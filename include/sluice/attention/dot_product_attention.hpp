/// The step between projections in every attention layer: heads of q, k and v in, what the queries found out.
///
///   q [T, heads dk], k [S, key_heads dk], v [S, key_heads dv]  ->  out [T, heads dv]                (kernel/attention.hpp)
///
/// It knows positions (rotary, from 0 in every sequence of the context), hidden tokens (the context's token mask; their
/// rows must hold finite numbers) and a cache of keys and values; it has no parameters. A layer owns one, puts its
/// projections into the memory, and finds the results there:
///
///   attention_.resize(m.heads, T);                ... write m.heads.q, .k and .v ...
///   attention_.forward(m.heads, m.kept.visible(context));                       ... read m.heads.out ...
///   ... write t.heads.dout ...;  attention_.backward(t.heads, visible);         ... read t.heads.dq, .dk and .dv ...
///
/// Rows of k and v are the tokens of q, or those of another source, with a context of their own: forward(m, context,
/// keys) and backward(t, context, keys), as many sequences in both; then S need not be T, and nothing may be causal.
/// q and k lie rotated in the memory afterwards; their gradients are those of q and k before. Equal bits for any number
/// of threads; a warm call allocates nothing.
#pragma once

#include <sluice/attention/key_value_cache.hpp>
#include <sluice/core/context.hpp>
#include <sluice/kernel/attention.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class dot_product_attention {
public:
  struct workspace {
    matrix_buffer<Scalar> q, k, v, out;
    buffer<kernel::attended_range> ranges;
    kernel::rotary_table<Scalar> rotary;
    kernel::attention_memory<Scalar> memory;
  };
  struct tape : workspace {
    matrix_buffer<Scalar> log_sums, dq, dk, dv, dout;
  };

  dot_product_attention() = default;
  /// Throws std::invalid_argument as kernel::check_heads and kernel::check_rotary do.
  explicit dot_product_attention(const kernel::attention_shape& shape, const kernel::rotary_options& rotary = {})
      : shape_(shape), rotary_(rotary) {
    kernel::check_heads(shape);
    kernel::check_rotary(rotary, shape.key_width);
  }

  const kernel::attention_shape& shape() const noexcept { return shape_; }
  const kernel::rotary_options& rotary() const noexcept { return rotary_; }
  index_t query_columns() const noexcept { return shape_.heads * shape_.key_width; }
  index_t key_columns() const noexcept { return shape_.key_heads * shape_.key_width; }
  index_t value_columns() const noexcept { return shape_.key_heads * shape_.value_width; }
  index_t out_columns() const noexcept { return shape_.heads * shape_.value_width; }

  /// Bytes of the memory that grow with the rows.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t numbers = query_columns() + key_columns() + value_columns() + out_columns();
    return rows * (numbers * (training ? 2 : 1) + (training ? shape_.heads : 0)) * static_cast<index_t>(sizeof(Scalar));
  }

  /// Room for q, k and v of so many rows.
  void resize(workspace& m, index_t rows) const {
    m.q.resize(rows, query_columns());
    m.k.resize(rows, key_columns());
    m.v.resize(rows, value_columns());
  }

  /// m.out of m.q, m.k and m.v.
  void forward(workspace& m, const routing_context<Scalar>& context) const { forward(m, context, context); }
  void forward(tape& t, const routing_context<Scalar>& context) const { forward(t, context, context); }
  void forward(workspace& m, const routing_context<Scalar>& context, const routing_context<Scalar>& keys) const {
    attend(m, nullptr, context, keys);
  }
  void forward(tape& t, const routing_context<Scalar>& context, const routing_context<Scalar>& keys) const {
    t.log_sums.resize(t.q.rows(), shape_.heads);
    attend(t, t.log_sums.data(), context, keys);
  }

  /// t.dq, t.dk and t.dv of t.dout [T, heads dv], after forward with the same tape and contexts.
  void backward(tape& t, const routing_context<Scalar>& context) const { backward(t, context, context); }
  void backward(tape& t, const routing_context<Scalar>& context, const routing_context<Scalar>& keys) const {
    t.dq.resize(t.q.rows(), query_columns());
    t.dk.resize(t.k.rows(), key_columns());
    t.dv.resize(t.v.rows(), value_columns());
    kernel::attention_backward<Scalar>(inputs(t, keys),
                                       {.out = by_head(t.out, shape_.value_width),
                                        .dout = by_head(t.dout, shape_.value_width),
                                        .log_sums = t.log_sums.data(),
                                        .dq = by_head(t.dq, shape_.key_width),
                                        .dk = by_head(t.dk, shape_.key_width),
                                        .dv = by_head(t.dv, shape_.value_width)},
                                       t.memory, context.executor);
    for (const auto& r : t.ranges) {
      rotate(t, t.dq, shape_.heads, {r.first_query, r.queries, 0}, kernel::turn::back, context.executor);
      rotate(t, t.dk, shape_.key_heads, {r.first_key, r.keys, 0}, kernel::turn::back, context.executor);
    }
  }

  /// m.out of m.q, m.k and m.v as those of tokens that continue the sequences in the cache; they are in it afterwards.
  /// Throws std::invalid_argument, before anything changes, if the cache has no room or another number of sequences.
  void forward_cached(workspace& m, key_value_cache<Scalar>& cache, const routing_context<Scalar>& context) const {
    check_cache(m.q.rows(), cache, context);
    m.ranges.clear();
    for (index_t s = 0; s < cache.sequences(); ++s) {
      const token_range tokens = context.sequence(s, m.q.rows());
      m.ranges.push_back({tokens.begin, tokens.size(), cache.row(s, 0), cache.length(s) + tokens.size()});
    }
    for (const auto& r : m.ranges) {
      const positions own{r.first_query, r.queries, r.keys - r.queries};
      rotate(m, m.q, shape_.heads, own, kernel::turn::forward, context.executor);
      rotate(m, m.k, shape_.key_heads, own, kernel::turn::forward, context.executor);
    }
    for (const auto& r : m.ranges)
      for (index_t i = 0; i < r.queries; ++i) {
        const index_t row = r.first_key + r.keys - r.queries + i, t = r.first_query + i;
        std::copy_n(m.k.row(t), key_columns(), cache.keys().at(row, 0));
        std::copy_n(m.v.row(t), value_columns(), cache.values().at(row, 0));
        cache.set_seen(row, !context.is_padding(t));
      }
    m.out.resize(m.q.rows(), out_columns());
    kernel::attention_forward<Scalar>({.shape = shape_,
                                       .sequences = m.ranges.span(),
                                       .q = by_head(m.q, shape_.key_width),
                                       .k = cache.keys(),
                                       .v = cache.values(),
                                       .key_mask = cache.seen()},
                                      by_head(m.out, shape_.value_width), nullptr, m.memory, context.executor);
    for (index_t s = 0; s < cache.sequences(); ++s) cache.advance(s, m.ranges[s].queries);
  }
  void check_cache(index_t rows, const key_value_cache<Scalar>& cache, const routing_context<Scalar>& context) const {
    if (context.sequence_count() != cache.sequences())
      throw_invalid("the context has ", context.sequence_count(), " sequences and the key_value_cache ",
                    cache.sequences(), ": all of them, in order, some perhaps without a token");
    if (!shape_.causal) throw_invalid("attention with a key_value_cache is causal: tokens to come are not in it");
    for (index_t s = 0; s < cache.sequences(); ++s) cache.check_room(shape_, s, context.sequence(s, rows).size());
  }

private:
  static kernel::head_rows<Scalar> by_head(matrix_buffer<Scalar>& m, index_t width) {
    return {m.data(), m.cols(), width};
  }

  /// Rows of a sequence, and the position of the first.
  struct positions {
    index_t row, count, first;
  };

  kernel::attention_inputs<Scalar> inputs(workspace& m, const routing_context<Scalar>& keys) const {
    return {.shape = shape_,
            .sequences = m.ranges.span(),
            .q = by_head(m.q, shape_.key_width),
            .k = by_head(m.k, shape_.key_width),
            .v = by_head(m.v, shape_.value_width),
            .key_mask = keys.token_mask};
  }

  void attend(workspace& m, Scalar* log_sums, const routing_context<Scalar>& context,
              const routing_context<Scalar>& keys) const {
    m.ranges.clear();
    m.ranges.reserve((std::max)(m.q.rows(), context.sequence_count()));  // shorter sequences find room as well
    for (index_t s = 0; s < context.sequence_count(); ++s) {
      const token_range tokens = context.sequence(s, m.q.rows()), seen = keys.sequence(s, m.k.rows());
      m.ranges.push_back({tokens.begin, tokens.size(), seen.begin, seen.size()});
    }
    for (const auto& r : m.ranges) {
      rotate(m, m.q, shape_.heads, {r.first_query, r.queries, 0}, kernel::turn::forward, context.executor);
      rotate(m, m.k, shape_.key_heads, {r.first_key, r.keys, 0}, kernel::turn::forward, context.executor);
    }
    m.out.resize(m.q.rows(), out_columns());
    kernel::attention_forward<Scalar>(inputs(m, keys), by_head(m.out, shape_.value_width), log_sums, m.memory,
                                      context.executor);
  }

  /// In place.
  void rotate(workspace& m, matrix_buffer<Scalar>& rows, index_t heads, const positions& own, kernel::turn direction,
              const executor_ref& executor) const {
    if (rotary_.width == 0) return;
    m.rotary.prepare(rotary_, own.first + own.count);
    m.rotary.rotate(by_head(rows, shape_.key_width), heads, own.row, own.count, own.first, direction, executor);
  }

  kernel::attention_shape shape_;
  kernel::rotary_options rotary_;
};

}  // namespace sluice::inline SLUICE_ISA
