/// Small experts made of one attention, dealt its heads like cards: MiniMoE's mixture of attention.
///
///   heads in order of importance; expert i of E takes the first `shared` ones, then shared + i, shared + i + E, ..
///   q, k, v of an expert: the rows of its heads, and their biases;   output map: their columns, and the whole bias
///
///   auto mixture = dealt_heads(student, head_router{router}, {.experts = 4, .units = 3, .shared = 1});
///
/// Heads are dealt as convert/dealt_experts.hpp deals units. Tokens attend all of their sequence, each with the maps of
/// its one expert (attention/selective_attention.hpp). With E = 1 it is the attention cut to its first heads, weighed
/// by the router. Throws std::invalid_argument if heads share keys, if an expert would get fewer heads than the first,
/// or if numbers make no sense. How heads are ranked is the caller's. Zhang et al. 2023, "Lifting the Curse of Capacity
/// Gap in Distilling Language Models", arXiv:2305.12129.
#pragma once

#include <sluice/attention/selective_attention.hpp>
#include <sluice/convert/dealt_experts.hpp>

#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// `order` are the heads, the most important first; empty: as they are.
template <FloatOrDouble Scalar, attention_order Order, typename Routing>
selective_attention<Routing, Order> dealt_heads(self_attention<Scalar, Order> dense, Routing routing, const dealing& d,
                                                std::span<const index_t> order = {}) {
  const kernel::attention_shape shape = dense.attention_shape();
  if (shape.key_heads != shape.heads)
    throw_invalid("heads that share keys cannot be dealt: ", shape.heads, " heads have ", shape.key_heads, " of keys");
  if (routing.experts() != d.experts)
    throw_invalid("a router of ", routing.experts(), " experts cannot choose among ", d.experts);
  check_dealt_order(shape.heads, order);
  const bool has_bias = dense.query_bias().size() > 0 || dense.output_bias().size() > 0;
  selective_attention<Routing, Order> mixture(std::move(routing),
                                              {.heads = static_cast<index_t>(dealt_units(shape.heads, d, 0).size()),
                                               .head_width = shape.key_width,
                                               .value_width = shape.value_width,
                                               .bias = has_bias,
                                               .scale = shape.scale,
                                               .among = attended::all_tokens,
                                               .rotary = dense.rotary()});
  const matrix<Scalar> output = dense.output().to_matrix();
  for (index_t e = 0; e < d.experts; ++e) {
    const std::vector<index_t> heads = dealt_units(shape.heads, d, e, order);
    if (static_cast<index_t>(heads.size()) != mixture.attention_shape().heads)
      throw_invalid("expert ", e, " would have ", heads.size(), " heads, expert 0 has ",
                    mixture.attention_shape().heads);
    const auto place = [&](index_t row, index_t width) { return heads[as_size(row / width)] * width + row % width; };
    const auto deal_rows = [&](auto& expert, parameter<Scalar>& weight, parameter<Scalar>& bias, index_t width) {
      const matrix<Scalar> from = weight.to_matrix();
      expert.weight().fill([&](index_t i) { return from(place(i / from.cols(), width), i % from.cols()); });
      if (bias.size() > 0) expert.bias().fill([&](index_t i) { return bias.element_at(place(i, width)); });
    };
    deal_rows(mixture.query().expert(e), dense.query(), dense.query_bias(), shape.key_width);
    deal_rows(mixture.key().expert(e), dense.key(), dense.key_bias(), shape.key_width);
    deal_rows(mixture.value().expert(e), dense.value(), dense.value_bias(), shape.value_width);
    auto& out = mixture.output().expert(e);
    out.weight().fill([&](index_t i) { return output(i / out.inputs(), place(i % out.inputs(), shape.value_width)); });
    if (dense.output_bias().size() > 0)
      out.bias().fill([&](index_t i) { return dense.output_bias().element_at(i); });
  }
  return mixture;
}

}  // namespace sluice::inline SLUICE_ISA
