/// Codebooks that tokens do not share: what context.modality_ids says of a token decides which quantiser it meets.
///
///   id = first number of quantiser m + what quantiser m says of x, m the token's modality      y = its code
///
///   modality_quantizer patches{std::vector{of_seen, of_masked}};                  // P-VQ: modality 1 is a masked patch
///   patches.encode(x, ids, workspace, {.modality_ids = modalities});              // 0 .. 511 and 512 .. 1023
///
/// Ids say whose they are, so decode needs no modalities; codes_before(m, column) is where those of m begin. Each
/// quantiser learns of its own tokens alone, and losses, which add up, are means over these. Searches look at all
/// tokens: work is that of one codebook with the codes of all. A call without modalities, or with one that has no
/// quantiser, throws std::invalid_argument, as does decoding a token whose columns are of different ones. Parameters:
/// "parts.0", "parts.1", ... Everything else: codebook/quantizer.hpp.
/// Liu et al. 2022, "Reduce Information Loss in Transformers for Pluralistic Image Inpainting".
#pragma once

#include <sluice/codebook/quantizer.hpp>
#include <sluice/codebook/structure/quantizer_list.hpp>

#include <cstdint>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Part>
struct modality_workspace {
  std::vector<typename Part::workspace> parts;
  buffer<std::uint8_t> seen;
  matrix_buffer<index_t> ids;
  matrix_buffer<typename Part::scalar> value;
};
template <typename Part>
struct modality_tape {
  std::vector<typename Part::tape> parts;
  std::vector<buffer<std::uint8_t>> seen;  ///< a quantiser's tokens
  matrix_buffer<typename Part::scalar> part_output, quantized, dpart;
};

}  // namespace detail

template <Quantizer Part>
class modality_quantizer : public quantizer_base<modality_quantizer<Part>, typename Part::scalar,
                                                 detail::modality_workspace<Part>, detail::modality_tape<Part>> {
  using memory = detail::modality_workspace<Part>;
  using base = quantizer_base<modality_quantizer, typename Part::scalar, memory, detail::modality_tape<Part>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = is_causal<Part>;
  static constexpr bool mixes_tokens = is_token_mixer<Part>;

  /// Throws std::invalid_argument unless there is a quantiser, and all have the same widths and columns.
  explicit modality_quantizer(std::vector<Part> each) : parts_(std::move(each)) {
    for (index_t m = 1; m < modalities(); ++m)
      if (part(m).inputs() != inputs() || part(m).outputs() != outputs() || part(m).code_columns() != code_columns())
        throw_invalid("modality ", m, " has a quantiser of [T, ", part(m).inputs(), "] to [T, ", part(m).outputs(),
                      "] in ", part(m).code_columns(), " columns; that of modality 0 has ", inputs(), ", ", outputs(),
                      " and ", code_columns());
  }

  index_t inputs() const noexcept { return part(0).inputs(); }
  index_t outputs() const noexcept { return part(0).outputs(); }
  index_t code_columns() const noexcept { return part(0).code_columns(); }
  index_t codes(index_t column = 0) const noexcept { return codes_before(modalities(), column); }
  index_t codes_before(index_t modality, index_t column = 0) const noexcept {
    index_t sum = 0;
    for (index_t m = 0; m < modality; ++m) sum += part(m).codes(column);
    return sum;
  }

  index_t modalities() const noexcept { return parts_.size(); }
  Part& part(index_t m) noexcept { return parts_[m]; }
  const Part& part(index_t m) const noexcept { return parts_[m]; }

  void after_step(tape& t) {
    t.record.validate(this);
    for (index_t m = 0; m < modalities(); ++m) part(m).after_step(t.parts[as_size(m)]);
  }

  template <typename F>
  void for_each_replaced(tape& t, F&& f) {
    for (index_t m = 0; m < modalities(); ++m) part(m).for_each_replaced(t.parts[as_size(m)], f);
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    return base::workspace_bytes(rows, training) + parts_.workspace_bytes(rows, training) +
           rows * outputs() * static_cast<index_t>(sizeof(scalar)) * (training ? 3 : 1);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    quantizer_list<Part>::visit_as(self.parts_, "part", visit);
  }

private:
  void check_modalities(const context_type& context, index_t tokens) const {
    if (context.modality_ids.empty() && tokens > 0) throw_invalid("modality_quantizer needs context.modality_ids");
    for (index_t t = 0; t < tokens; ++t)
      if (const index_t m = context.modality_ids[as_size(t)]; !context.is_padding(t) && (m < 0 || m >= modalities()))
        throw_invalid("token ", t, " has modality ", m, ", and there are quantisers for ", modalities());
  }

  /// What quantiser m is told: the tokens of its modality.
  context_type context_of(index_t m, const context_type& context, index_t tokens, buffer<std::uint8_t>& seen) const {
    seen.resize(tokens);
    for (index_t t = 0; t < tokens; ++t) seen[t] = !context.is_padding(t) && context.modality_ids[as_size(t)] == m;
    context_type own = context.for_layer(m);
    own.token_mask = std::as_const(seen).span();
    return own;
  }

  /// A token's numbers in quantiser m become those among the codes of all.
  void number(index_t m, tokens_in<index_t> own, index_t t, tokens_out<index_t> ids) const {
    for (index_t c = 0; c < ids.cols(); ++c)
      ids(t, c) = own(t, c) == no_code ? no_code : codes_before(m, c) + own(t, c);
  }

  void prepare(memory& w, const executor_ref& executor) const {
    w.parts.resize(as_size(modalities()));
    for (index_t m = 0; m < modalities(); ++m) part(m).prepare_call(w.parts[as_size(m)], executor);
  }

  void encode_rows(tokens_in<scalar> x, tokens_out<index_t> ids, memory& w, const context_type& context) const {
    check_modalities(context, x.rows());
    w.ids.resize(x.rows(), code_columns());
    for (index_t m = 0; m < modalities(); ++m) {
      const context_type own = context_of(m, context, x.rows(), w.seen);
      part(m).encode_prepared(x, w.ids.map(), w.parts[as_size(m)], own);
      for (index_t t = 0; t < x.rows(); ++t)
        if (w.seen[t]) number(m, std::as_const(w.ids).map(), t, ids);
    }
  }

  void decode_rows(tokens_in<index_t> ids, tokens_out<scalar> y, memory& w, const executor_ref& executor) const {
    w.ids.resize(ids.rows(), code_columns());
    w.value.resize(ids.rows(), outputs());
    for (index_t m = 0; m < modalities(); ++m) {
      const auto belongs = [&](index_t t, index_t c) {
        return ids(t, c) >= codes_before(m, c) && ids(t, c) < codes_before(m + 1, c);
      };
      for (index_t t = 0; t < ids.rows(); ++t)
        for (index_t c = 0; c < ids.cols(); ++c) {
          const bool own = ids(t, c) != no_code && belongs(t, 0);
          if (own && !belongs(t, c)) throw_invalid("token ", t, " has codes of different modalities");
          w.ids(t, c) = own ? ids(t, c) - codes_before(m, c) : no_code;
        }
      part(m).decode_prepared(std::as_const(w.ids).map(), w.value.map(), w.parts[as_size(m)], executor);
      for (index_t t = 0; t < ids.rows(); ++t)
        if (w.ids(t, 0) != no_code) y.row(t) = w.value.map().row(t);
    }
  }

  void assign(tape& t, const context_type& context) const {
    const index_t tokens = t.kept.rows();
    check_modalities(context, tokens);
    t.parts.resize(as_size(modalities()));
    t.seen.resize(as_size(modalities()));
    t.part_output.resize(tokens, outputs());
    t.quantized.set_zero(tokens, outputs());
    for (index_t m = 0; m < modalities(); ++m) {
      context_type own = context_of(m, context, tokens, t.seen[as_size(m)]);
      for (index_t i = 0; i < tokens; ++i)
        if (!t.kept.counts(i)) t.seen[as_size(m)][i] = 0;
      part(m).forward(t.kept.x(), t.part_output.map(), t.parts[as_size(m)], own);
      const auto& ids = t.parts[as_size(m)].ids;
      for (index_t i = 0; i < tokens; ++i)
        if (t.seen[as_size(m)][i]) {
          number(m, ids.map(), i, t.ids.map());
          t.quantized.map().row(i) = t.part_output.map().row(i);
        }
    }
  }

  void quantize(tape& t, tokens_out<scalar> y, const context_type&) const {
    y = t.quantized.map();
    t.value = 0;
    for (const auto& one : t.parts) t.value += one.loss();
  }

  void quantize_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    t.dpart.resize(dy.rows(), inputs());
    for (index_t m = 0; m < modalities(); ++m) {
      part(m).backward(dy, t.dpart.map(), t.parts[as_size(m)]);
      for (index_t i = 0; i < dy.rows(); ++i)
        if (t.seen[as_size(m)][i]) dx.row(i) = t.dpart.map().row(i);
    }
  }

  quantizer_list<Part> parts_;
};

}  // namespace sluice::inline SLUICE_ISA
