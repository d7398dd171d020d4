/// Product quantisation with one codebook for all parts: every row is M shorter rows of one batch.
///
///   x [T,D] = [M T, D/M] -> the quantiser -> y [T,D]         ids [T,M]: column m is what the quantiser says of part m
///
///   shared_product_quantizer movq{vector_quantizer{learned_codes<float>{16384, 4}}, 4};       // D = 16 in four groups
///
/// One search and one step of learning a call, from all parts; losses are means over all D. Groups of the context keep
/// their tokens. A token is hidden with all its parts. Parts with codes of their own: codebook/structure/product.hpp.
/// Parameters: "part". Everything else: codebook/quantizer.hpp.
/// Zheng et al. 2022, "MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation"; Baevski, Schneider, Auli
/// 2020, "vq-wav2vec", section 3.3.
#pragma once

#include <sluice/codebook/quantizer.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Tokens cut into parts, and the context for them.
template <typename Scalar>
struct cut_rows {
  matrix_buffer<Scalar> x, y;  ///< [M T, ...]
  matrix_buffer<index_t> ids;
  buffer<std::uint8_t> seen;
  buffer<index_t> groups;

  template <typename SeenToken>
  routing_context<Scalar> context_of(const routing_context<Scalar>& whole, index_t tokens, index_t parts,
                                     SeenToken&& is_seen) {
    seen.resize(tokens * parts);
    for (index_t t = 0; t < tokens; ++t) std::fill_n(seen.begin() + t * parts, parts, std::uint8_t(is_seen(t)));
    groups.clear();
    for (const index_t border : whole.groups) groups.push_back(border * parts);
    routing_context<Scalar> of_parts;
    of_parts.training = whole.training;
    of_parts.random = whole.random;
    of_parts.step = whole.step;
    of_parts.executor = whole.executor;
    of_parts.token_mask = std::as_const(seen).span();
    of_parts.groups = std::as_const(groups).span();
    return of_parts;
  }

  /// The same numbers as [M T, width]: x's rows lie end to end in the buffer.
  template <typename T>
  static const_matrix_map<T> cut(const matrix_buffer<T>& whole, index_t parts) {
    return {whole.data(), whole.rows() * parts, whole.cols() / parts};
  }
  template <typename T>
  static matrix_map<T> cut(matrix_buffer<T>& whole, index_t parts) {
    return {whole.data(), whole.rows() * parts, whole.cols() / parts};
  }
};

template <typename Part>
struct shared_product_workspace : cut_rows<typename Part::scalar> {
  typename Part::workspace part;
};
template <typename Part>
struct shared_product_tape : cut_rows<typename Part::scalar> {
  typename Part::tape part;
  matrix_buffer<typename Part::scalar> dy, dx;
};

}  // namespace detail

template <Quantizer Part>
class shared_product_quantizer
    : public quantizer_base<shared_product_quantizer<Part>, typename Part::scalar,
                            detail::shared_product_workspace<Part>, detail::shared_product_tape<Part>> {
  using memory = detail::shared_product_workspace<Part>;
  using base =
      quantizer_base<shared_product_quantizer, typename Part::scalar, memory, detail::shared_product_tape<Part>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = is_causal<Part>;
  static constexpr bool mixes_tokens = is_token_mixer<Part>;

  /// Throws std::invalid_argument unless there is a part.
  shared_product_quantizer(Part part, index_t parts) : part_(std::move(part)), parts_(parts) {
    if (parts < 1) throw_invalid("shared_product_quantizer needs at least 1 part, not ", parts);
  }

  index_t inputs() const noexcept { return parts_ * part_.inputs(); }
  index_t outputs() const noexcept { return parts_ * part_.outputs(); }
  index_t code_columns() const noexcept { return parts_ * part_.code_columns(); }
  index_t codes(index_t column = 0) const noexcept { return part_.codes(column % part_.code_columns()); }

  /// M.
  index_t parts() const noexcept { return parts_; }
  Part& part() noexcept { return part_; }
  const Part& part() const noexcept { return part_; }

  void after_step(tape& t) {
    t.record.validate(this);
    part_.after_step(t.part);
  }

  template <typename F>
  void for_each_replaced(tape& t, F&& f) {
    part_.for_each_replaced(t.part, f);
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    return base::workspace_bytes(rows, training) + part_.workspace_bytes(parts_ * rows, training) +
           rows * (inputs() + outputs()) * static_cast<index_t>(sizeof(scalar)) * (training ? 2 : 1);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("part", self.part_);
  }

private:
  using cuts = detail::cut_rows<scalar>;

  void prepare(memory& m, const executor_ref& executor) const { part_.prepare_call(m.part, executor); }

  void encode_rows(tokens_in<scalar> x, tokens_out<index_t> ids, memory& m, const context_type& context) const {
    m.x.resize(x.rows(), x.cols());
    m.x.map() = x;
    m.ids.resize(ids.rows(), ids.cols());
    const auto own = m.context_of(context, x.rows(), parts_, [&](index_t t) { return !context.is_padding(t); });
    part_.encode_prepared(cuts::cut(std::as_const(m.x), parts_), cuts::cut(m.ids, parts_), m.part, own);
    ids = m.ids.map();
  }

  void decode_rows(tokens_in<index_t> ids, tokens_out<scalar> y, memory& m, const executor_ref& executor) const {
    m.ids.resize(ids.rows(), ids.cols());
    m.ids.map() = ids;
    m.y.resize(y.rows(), y.cols());
    part_.decode_prepared(cuts::cut(std::as_const(m.ids), parts_), cuts::cut(m.y, parts_), m.part, executor);
    y = m.y.map();
  }

  void assign(tape& t, const context_type& context) const {
    const auto x = t.kept.x();
    t.y.resize(x.rows(), outputs());
    const auto own = t.context_of(context, x.rows(), parts_, [&](index_t i) { return t.kept.counts(i); });
    const const_matrix_map<scalar> cut_x{x.data(), x.rows() * parts_, part_.inputs()};
    part_.forward(cut_x, cuts::cut(t.y, parts_), t.part, own);
    std::copy_n(t.part.ids.data(), t.ids.size(), t.ids.data());
  }

  void quantize(tape& t, tokens_out<scalar> y, const context_type&) const {
    y = t.y.map();
    t.value = t.part.loss();
  }

  void quantize_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    t.dy.resize(dy.rows(), dy.cols());
    t.dy.map() = dy;
    t.dx.resize(dx.rows(), dx.cols());
    part_.backward(cuts::cut(std::as_const(t.dy), parts_), cuts::cut(t.dx, parts_), t.part);
    dx = t.dx.map();
  }

  Part part_;
  index_t parts_;
};

}  // namespace sluice::inline SLUICE_ISA
