/// Product quantisation: a row is cut into parts side by side, each with a quantiser of its own.
///
///   x = [x^1 .. x^M]     ids^m, q^m = part m of x^m     y = [q^1 .. q^M]        D = the sum of the parts' widths
///
///   product_quantizer pq{std::vector(8, vector_quantizer{learned_codes<float>{256, 16}})};               // D = 128
///   const auto memory = vector_quantizer{moving_average_codes<float>{65536, 16, {.decay = 0.999}},
///                                        commitment_loss{.encoder = 0}};
///   product_quantizer memory_vq{std::vector(256, memory)};                                 // 4096 numbers in 512 bytes
///
/// A part is any quantiser, a residual one too (grouped residual quantisation); its columns of ids follow those of the
/// part before it. The squared error is the sum of the parts' errors, and so are losses: a part's mean is over its own
/// width, so divide weights by M for a mean over D. A token is hidden from all parts or from none. Codes that all parts
/// share: codebook/structure/shared_product.hpp. Parameters: "parts.0", "parts.1", ... Everything else:
/// codebook/quantizer.hpp.
/// Jegou, Douze, Schmid 2011, "Product quantization for nearest neighbor search"; Zemlyanskiy et al. 2023, "MEMORY-VQ".
#pragma once

#include <sluice/codebook/quantizer.hpp>
#include <sluice/codebook/structure/quantizer_list.hpp>

#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Part>
struct product_workspace {
  std::vector<typename Part::workspace> parts;
};
template <typename Part>
struct product_tape {
  std::vector<typename Part::tape> parts;
  matrix_buffer<typename Part::scalar> quantized;
};

}  // namespace detail

template <Quantizer Part>
class product_quantizer : public quantizer_base<product_quantizer<Part>, typename Part::scalar,
                                                detail::product_workspace<Part>, detail::product_tape<Part>> {
  using memory = detail::product_workspace<Part>;
  using base = quantizer_base<product_quantizer, typename Part::scalar, memory, detail::product_tape<Part>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = is_causal<Part>;
  static constexpr bool mixes_tokens = is_token_mixer<Part>;

  /// Throws std::invalid_argument unless there is a part.
  explicit product_quantizer(std::vector<Part> parts) : parts_(std::move(parts)) {
    first_input_.push_back(0);
    first_output_.push_back(0);
    for (index_t m = 0; m < parts_.size(); ++m) {
      first_input_.push_back(first_input_.back() + parts_[m].inputs());
      first_output_.push_back(first_output_.back() + parts_[m].outputs());
    }
  }

  index_t inputs() const noexcept { return first_input_.back(); }
  index_t outputs() const noexcept { return first_output_.back(); }
  index_t code_columns() const noexcept { return parts_.code_columns(); }
  index_t codes(index_t column) const noexcept { return parts_.codes(column); }

  /// M.
  index_t parts() const noexcept { return parts_.size(); }
  Part& part(index_t m) noexcept { return parts_[m]; }
  const Part& part(index_t m) const noexcept { return parts_[m]; }

  void after_step(tape& t) {
    t.record.validate(this);
    for (index_t m = 0; m < parts(); ++m) part(m).after_step(t.parts[as_size(m)]);
  }

  template <typename F>
  void for_each_replaced(tape& t, F&& f) {
    for (index_t m = 0; m < parts(); ++m) part(m).for_each_replaced(t.parts[as_size(m)], f);
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    return base::workspace_bytes(rows, training) + parts_.workspace_bytes(rows, training) +
           (training ? rows * outputs() * static_cast<index_t>(sizeof(scalar)) : 0);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    quantizer_list<Part>::visit_as(self.parts_, "part", visit);
  }

private:
  template <typename Rows>
  auto read_by(index_t m, Rows&& x) const {
    return x.middleCols(first_input_[as_size(m)], part(m).inputs());
  }
  template <typename Rows>
  auto written_by(index_t m, Rows&& y) const {
    return y.middleCols(first_output_[as_size(m)], part(m).outputs());
  }

  void prepare(memory& w, const executor_ref& executor) const {
    w.parts.resize(as_size(parts()));
    for (index_t m = 0; m < parts(); ++m) part(m).prepare_call(w.parts[as_size(m)], executor);
  }

  void encode_rows(tokens_in<scalar> x, tokens_out<index_t> ids, memory& w, const context_type& context) const {
    for (index_t m = 0; m < parts(); ++m)
      part(m).encode_prepared(read_by(m, x), parts_.columns(ids, m), w.parts[as_size(m)], context);
  }

  void decode_rows(tokens_in<index_t> ids, tokens_out<scalar> y, memory& w, const executor_ref& executor) const {
    for (index_t m = 0; m < parts(); ++m)
      part(m).decode_prepared(parts_.columns(ids, m), written_by(m, y), w.parts[as_size(m)], executor);
  }

  void assign(tape& t, const context_type& context) const {
    const context_type visible = t.kept.visible(context);
    t.parts.resize(as_size(parts()));
    t.quantized.resize(t.kept.rows(), outputs());
    for (index_t m = 0; m < parts(); ++m) {
      part(m).forward(read_by(m, t.kept.x()), written_by(m, t.quantized.map()), t.parts[as_size(m)],
                      visible.for_layer(m));
      parts_.columns(t.ids.map(), m) = t.parts[as_size(m)].ids.map();
    }
  }

  void quantize(tape& t, tokens_out<scalar> y, const context_type&) const {
    y = t.quantized.map();
    t.value = 0;
    for (const auto& one : t.parts) t.value += one.loss();
  }

  void quantize_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    for (index_t m = 0; m < parts(); ++m)
      part(m).backward(written_by(m, dy), read_by(m, dx), t.parts[as_size(m)]);
  }

  quantizer_list<Part> parts_;
  std::vector<index_t> first_input_, first_output_;
};

}  // namespace sluice::inline SLUICE_ISA
