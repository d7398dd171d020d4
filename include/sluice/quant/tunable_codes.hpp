/// Vector codes that learn: codebooks and scales are parameters, and a gradient of the decoded matrix goes into them.
///
///   W(o, i) = s(o, i) (c_1 + .. + c_M)(o, i)                                    kernel/format/vector_codes.hpp
///   ds(o, g)      = sum over the inputs i of group g of dW(o, i) (c_1 + .. + c_M)(o, i)
///   dc_m[k](p)    = sum over the tiles with index k in stage m of s(o, i) dW(o, i), (o, i) = place p of the tile
///
///   tunable_codes<float> codes(plain);
///   codes.backward(dw);  optimizer.step(codes);  zero_gradients(codes);  plain = codes.plain();
///
/// Any optimiser steps them; indices change by discrete_step.hpp. In float, to_matrix gives the bits of
/// plain().to_matrix(). Gradients are added in the order of the weights, row by row: equal bits always. An entry that
/// no tile uses gets zero. NaN in dW reaches the entries and the scale that its weight is made of. Egiazarian et al.
/// 2024, "Extreme Compression of Large Language Models via Additive Quantization", arXiv:2401.06118.
#pragma once

#include <sluice/core/parameter.hpp>
#include <sluice/quant/tiles.hpp>

#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class tunable_codes {
public:
  using scalar = Scalar;

  tunable_codes() = default;
  /// Throws std::invalid_argument if the codes do not fit together.
  explicit tunable_codes(vector_codes codes) : shape_(std::move(codes)) {
    shape_.validate();
    for (const matrix<float>& c : shape_.codebooks) codebooks_.push_back(learned(c));
    if (shape_.scales.size() != 0) scales_ = learned(shape_.scales);
    shape_.codebooks.clear();
    shape_.scales.resize(0, 0);
  }

  index_t outputs() const noexcept { return shape_.outputs; }
  index_t inputs() const noexcept { return shape_.inputs; }
  index_t stages() const noexcept { return shape_.stages(); }
  /// Sizes and indices; codebooks and scales are the parameters below.
  const vector_codes& shape() const noexcept { return shape_; }
  bool has_scales() const noexcept { return scales_.size() != 0; }

  const parameter<Scalar>& codebook(index_t region, index_t stage) const noexcept {
    return codebooks_[as_size(region * stages() + stage)];
  }
  parameter<Scalar>& codebook(index_t region, index_t stage) noexcept {
    return codebooks_[as_size(region * stages() + stage)];
  }
  const parameter<Scalar>& scales() const noexcept { return scales_; }
  parameter<Scalar>& scales() noexcept { return scales_; }

  index_t index(index_t stage, index_t a, index_t b) const noexcept { return shape_.indices[as_size(stage)](a, b); }
  /// Throws std::invalid_argument if the codebook has no such entry.
  void set_index(index_t stage, index_t a, index_t b, index_t entry) {
    const index_t entries = codebook(shape_.region(a, b), stage).rows();
    if (entry < 0 || entry >= entries)
      throw_invalid("tile (", a, ", ", b, ") cannot have the index ", entry, " into ", entries, " entries");
    shape_.indices[as_size(stage)](a, b) = static_cast<std::uint16_t>(entry);
  }

  Scalar scale(index_t output, index_t input) const noexcept {
    if (!has_scales()) return Scalar(1);
    return scales_.map()(output, shape_.scale_inputs == 0 ? 0 : input / shape_.scale_inputs);
  }

  matrix<Scalar> to_matrix() const {
    matrix<Scalar> w(outputs(), inputs());
    for_each_sum([&](index_t o, index_t i, Scalar sum) { w(o, i) = has_scales() ? scale(o, i) * sum : sum; });
    return w;
  }

  /// Adds the gradients of codebooks and scales. Throws std::invalid_argument if dw has another shape than the matrix.
  void backward(tokens_in<Scalar> dw) {
    if (dw.rows() != outputs() || dw.cols() != inputs())
      throw_invalid("codes of a matrix [", outputs(), ", ", inputs(), "] have no gradient [", dw.rows(), ", ",
                    dw.cols(), "]");
    if (has_scales()) {
      matrix_map<Scalar> ds = scales_.gradient_map();
      for_each_sum([&](index_t o, index_t i, Scalar sum) {
        ds(o, shape_.scale_inputs == 0 ? 0 : i / shape_.scale_inputs) += dw(o, i) * sum;
      });
    }
    for (parameter<Scalar>& c : codebooks_) c.ensure_gradient();
    for_each_entry([&](index_t o, index_t i, index_t codebook, index_t entry, index_t place) {
      const Scalar d = has_scales() ? scale(o, i) * dw(o, i) : dw(o, i);
      parameter<Scalar>& c = codebooks_[as_size(codebook)];
      c.gradient()[as_size(entry * c.cols() + place)] += d;
    });
  }

  /// As plain data, rounded to float.
  vector_codes plain() const {
    vector_codes codes = shape_;
    for (const parameter<Scalar>& c : codebooks_) codes.codebooks.push_back(c.map().template cast<float>());
    if (has_scales()) codes.scales = scales_.map().template cast<float>();
    return codes;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    for (std::size_t c = 0; c < self.codebooks_.size(); ++c)
      visit("codebooks." + std::to_string(c), self.codebooks_[c]);
    if (self.has_scales()) visit("scales", self.scales_);
  }

private:
  static parameter<Scalar> learned(const matrix<float>& values) {
    parameter<Scalar> p({values.rows(), values.cols()},
                        parameter_role::vector);  // decay would move all weights at once
    p.map() = values.cast<Scalar>();
    return p;
  }

  /// f(o, i, codebook, entry, place in the entry), weight by weight, stage by stage.
  template <typename F>
  void for_each_entry(F&& f) const {
    const tile_shape tile = tile_shape::of(shape_);
    const index_t across = shape_.tile_cols();
    detail::for_each_weight(outputs(), inputs(), tile, [&](index_t o, index_t i, index_t t, index_t place) {
      const index_t a = t / across, b = t % across, first = shape_.region(a, b) * stages();
      for (index_t m = 0; m < stages(); ++m) f(o, i, first + m, index(m, a, b), place);
    });
  }
  /// f(o, i, the weight without its scale).
  template <typename F>
  void for_each_sum(F&& f) const {
    Scalar sum = 0;
    index_t stage = 0;
    for_each_entry([&](index_t o, index_t i, index_t codebook, index_t entry, index_t place) {
      const parameter<Scalar>& c = codebooks_[as_size(codebook)];
      const Scalar number = c.data()[entry * c.cols() + place];
      sum = stage == 0 ? number : sum + number;
      if (++stage == stages()) {
        f(o, i, sum);
        stage = 0;
      }
    });
  }

  vector_codes shape_;
  std::vector<parameter<Scalar>> codebooks_;  ///< region by region, stage by stage
  parameter<Scalar> scales_{{0, 0}, parameter_role::vector};
};

static_assert(HasParameters<tunable_codes<float>>);

}  // namespace sluice::inline SLUICE_ISA
