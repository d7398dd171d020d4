/// The linear maps around attention: of x to queries, keys and values, and of what the heads found to y.
///
///   q = x W_q^T (+ b_q) [T, heads dk]    k = x W_k^T (+ b_k) [T, key_heads dk]    v = x W_v^T (+ b_v) [T, key_heads dv]
///   y = out W_o^T (+ b_o)
///
/// Keys and values may be those of other rows s [S,F], of another width (options.source).
///
/// A part of layers, which own the memory of the step between (attention/dot_product_attention.hpp). Parameters are
/// "query", "key", "value", "output" and, if they are wanted, "query_bias", "key_bias", "value_bias", "output_bias".
#pragma once

#include <sluice/attention/dot_product_attention.hpp>
#include <sluice/kernel/linear.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// The heads that a layer of this width and these options has, widths and numbers filled in where they were left out.
template <typename Options>
kernel::attention_shape attention_shape_of(const char* layer, index_t width, const Options& o, bool causal) {
  if (width < 1 || o.heads < 1 || o.key_heads < 0 || o.head_width < 0 || o.value_width < 0 ||
      (o.head_width == 0 && width % o.heads != 0))
    throw_invalid(layer,
                  " needs D >= 1, heads >= 1, D a multiple of heads where head_width is left out, and nothing "
                  "below 0, not D ",
                  width, ", ", o.heads, " heads, ", o.key_heads, " key heads, widths ", o.head_width, " and ",
                  o.value_width);
  const index_t key_width = o.head_width == 0 ? width / o.heads : o.head_width;
  return {.heads = o.heads,
          .key_heads = o.key_heads == 0 ? o.heads : o.key_heads,
          .key_width = key_width,
          .value_width = o.value_width == 0 ? key_width : o.value_width,
          .scale = o.scale,
          .causal = causal,
          .sharing = o.sharing};
}

}  // namespace detail

template <FloatOrDouble Scalar>
class attention_projections {
  using step = dot_product_attention<Scalar>;

public:
  struct options {
    bool bias = false;  ///< of q, k and v
    bool output_bias = false;
    bool zero_output = false;  ///< W_o starts at zero
    index_t source = 0;        ///< F, of what keys and values are made of; 0: that of x
  };

  attention_projections(index_t width, const step& between, const options& o) : options_(o) {
    const auto weight = [](index_t out, index_t in) {
      return parameter<Scalar>({out, in}, parameter_role::weight,
                               initial_values::normal(1 / std::sqrt(static_cast<double>(in))));
    };
    const index_t source = o.source == 0 ? width : o.source;
    query_ = weight(between.query_columns(), width);
    key_ = weight(between.key_columns(), source);
    value_ = weight(between.value_columns(), source);
    output_ = o.zero_output ? parameter<Scalar>({width, between.out_columns()}, parameter_role::weight)
                            : weight(width, between.out_columns());
    if (o.bias) {
      query_bias_ = {{between.query_columns()}, parameter_role::vector};
      key_bias_ = {{between.key_columns()}, parameter_role::vector};
      value_bias_ = {{between.value_columns()}, parameter_role::vector};
    }
    if (o.output_bias) output_bias_ = {{width}, parameter_role::vector};
  }

  index_t inputs() const noexcept { return query_.cols(); }
  const options& biases() const noexcept { return options_; }

  /// Width of what keys and values are made of.
  index_t source() const noexcept { return key_.cols(); }

  /// m.q, m.k and m.v of x, or queries and what they look at apart.
  void project(tokens_in<Scalar> x, typename step::workspace& m, const executor_ref& executor) const {
    project_queries(x, m, executor);
    project_keys(x, m, executor);
  }
  void project_queries(tokens_in<Scalar> x, typename step::workspace& m, const executor_ref& executor) const {
    map(x, query_, query_bias_, m.q, executor);
  }
  void project_keys(tokens_in<Scalar> s, typename step::workspace& m, const executor_ref& executor) const {
    map(s, key_, key_bias_, m.k, executor);
    map(s, value_, value_bias_, m.v, executor);
  }
  /// dx += what t.dq, t.dk and t.dv give it; gradients of the parameters.
  void project_backward(tokens_in<Scalar> x, typename step::tape& t, tokens_out<Scalar> dx,
                        const executor_ref& executor) {
    project_queries_backward(x, t, dx, executor);
    project_keys_backward(x, t, dx, executor);
  }
  void project_queries_backward(tokens_in<Scalar> x, typename step::tape& t, tokens_out<Scalar> dx,
                                const executor_ref& executor) {
    map_backward(x, query_, query_bias_, t.dq, dx, executor);
  }
  void project_keys_backward(tokens_in<Scalar> s, typename step::tape& t, tokens_out<Scalar> ds,
                             const executor_ref& executor) {
    map_backward(s, key_, key_bias_, t.dk, ds, executor);
    map_backward(s, value_, value_bias_, t.dv, ds, executor);
  }

  /// y of what the heads found.
  void reduce(tokens_in<Scalar> found, tokens_out<Scalar> y, const executor_ref& executor) const {
    linear_forward(found, output_, y, executor);
    if (options_.output_bias) add_to_rows<Scalar>(y, output_bias_);
  }
  /// dfound is overwritten; gradients of the parameters.
  void reduce_backward(tokens_in<Scalar> found, tokens_in<Scalar> dy, matrix_buffer<Scalar>& dfound,
                       const executor_ref& executor) {
    dfound.set_zero(dy.rows(), output_.cols());
    linear_backward(found, output_, dy, dfound.map(), executor);
    if (options_.output_bias) add_column_sums(dy, output_bias_.gradient());
  }

  parameter<Scalar>& query() noexcept { return query_; }
  parameter<Scalar>& key() noexcept { return key_; }
  parameter<Scalar>& value() noexcept { return value_; }
  parameter<Scalar>& output() noexcept { return output_; }
  parameter<Scalar>& query_bias() noexcept { return query_bias_; }
  parameter<Scalar>& key_bias() noexcept { return key_bias_; }
  parameter<Scalar>& value_bias() noexcept { return value_bias_; }
  parameter<Scalar>& output_bias() noexcept { return output_bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("query", self.query_);
    visit("key", self.key_);
    visit("value", self.value_);
    visit("output", self.output_);
    if (self.options_.bias) {
      visit("query_bias", self.query_bias_);
      visit("key_bias", self.key_bias_);
      visit("value_bias", self.value_bias_);
    }
    if (self.options_.output_bias) visit("output_bias", self.output_bias_);
  }

private:
  void map(tokens_in<Scalar> x, const parameter<Scalar>& weight, const parameter<Scalar>& bias,
           matrix_buffer<Scalar>& to, const executor_ref& executor) const {
    to.resize(x.rows(), weight.rows());
    linear_forward(x, weight, to.map(), executor);
    if (options_.bias) add_to_rows<Scalar>(to.map(), bias);
  }
  void map_backward(tokens_in<Scalar> x, parameter<Scalar>& weight, parameter<Scalar>& bias,
                    matrix_buffer<Scalar>& gradient, tokens_out<Scalar> dx, const executor_ref& executor) {
    linear_backward(x, weight, gradient.map(), dx, executor);
    if (options_.bias) add_column_sums<Scalar>(gradient.map(), bias.gradient());
  }

  options options_;
  parameter<Scalar> query_, key_, value_, output_;
  parameter<Scalar> query_bias_, key_bias_, value_bias_, output_bias_;
};

}  // namespace sluice::inline SLUICE_ISA
