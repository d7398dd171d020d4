// Ties the parameters of a layer to slices of the file's tensors: to load values and to compare gradients.
#pragma once

#include "oracle_case.hpp"

#include <sluice/core/parameter.hpp>

#include <map>

namespace oracle {

enum class layout { as_stored, transposed };

template <typename Scalar>
class bindings {
public:
  /// The parameter is the slice of the tensor that starts at element `offset`; transposed if the file stores [in,out].
  /// `rows` is the number of rows to transpose by, if that is not the parameter's first axis.
  void bind(const std::string& tensor, sluice::parameter<Scalar>& p, index_t offset = 0, layout l = layout::as_stored,
            index_t rows = 0) {
    if (rows == 0) rows = p.rows();
    const index_t cols = rows == 0 ? 0 : p.size() / rows;
    if (l == layout::as_stored)
      bind_at(tensor, p, {offset, cols, 1}, rows);
    else
      bind_at(tensor, p, {offset, 1, rows}, rows);
  }

  /// Element (r, c) of the parameter is element offset + r row_stride + c col_stride of the tensor.
  struct place {
    index_t offset;
    index_t row_stride;
    index_t col_stride;
  };
  void bind_at(const std::string& tensor, sluice::parameter<Scalar>& p, place at, index_t rows = 0) {
    if (rows == 0) rows = p.rows();
    bound_.push_back({tensor, &p, at, 0, rows, rows == 0 ? 0 : p.size() / rows});
  }
  /// The rows first .. first + count of the parameter are the slice of the tensor that starts at element `offset`.
  void bind_rows(const std::string& tensor, sluice::parameter<Scalar>& p, index_t first, index_t count, index_t offset,
                 layout l = layout::as_stored) {
    const bool stored = l == layout::as_stored;
    bound_.push_back({tensor, &p, {offset, stored ? p.cols() : 1, stored ? 1 : count}, first, count, p.cols()});
  }

  /// Copies the file's values into the parameters.
  void load(const oracle_case<Scalar>& c) const {
    for (const entry& b : bound_) {
      const auto values = c.numbers(b.tensor);
      b.each([&](std::size_t inside, std::size_t outside) { b.target->value()[inside] = values.at(outside); });
    }
  }

  /// Compares expected.<prefix>.<tensor> with the gradients for every bound tensor.
  void check_gradients(oracle_case<Scalar>& c, const std::string& prefix) const {
    std::map<std::string, std::vector<Scalar>> gathered;
    for (const entry& b : bound_) {
      auto& gradient = gathered[b.tensor];
      gradient.resize(c.numbers(b.tensor).size());
      b.each([&](std::size_t inside, std::size_t outside) { gradient.at(outside) = b.target->gradient()[inside]; });
    }
    for (const auto& [tensor, gradient] : gathered) c.check(prefix + '.' + tensor, gradient);
  }

private:
  struct entry {
    std::string tensor;
    sluice::parameter<Scalar>* target;
    place at;
    index_t first;
    index_t rows;
    index_t cols;

    template <typename F>
    void each(F&& f) const {
      for (index_t r = 0; r < rows; ++r)
        for (index_t c = 0; c < cols; ++c)
          f(static_cast<std::size_t>(target->place((first + r) * cols + c)),
            static_cast<std::size_t>(at.offset + r * at.row_stride + c * at.col_stride));
    }
  };
  std::vector<entry> bound_;
};

extern template class bindings<float>;  // compiled once, in oracle_case.cpp
extern template class bindings<double>;

/// Binds expert e of a bank, for each e, to its slices of the stacked tensors that a case has.
struct ffn_tensors {
  const char* up;
  const char* down;
  layout up_layout = layout::as_stored;
  layout down_layout = layout::as_stored;
  const char* up_bias = "experts.bias1";
  const char* down_bias = "experts.bias2";
};

template <typename Scalar, typename Bank>
void bind_ffn(bindings<Scalar>& b, Bank& bank, const ffn_tensors& names, bool bias) {
  for (index_t e = 0; e < bank.experts(); ++e) {
    auto& expert = bank.expert(e);
    b.bind(names.up, expert.up(), e * expert.up().size(), names.up_layout);
    b.bind(names.down, expert.down(), e * expert.down().size(), names.down_layout);
    if (!bias) continue;
    b.bind(names.up_bias, expert.up_bias(), e * expert.up_bias().size());
    b.bind(names.down_bias, expert.down_bias(), e * expert.down_bias().size());
  }
}

/// The matrix of each expert of a bank of linear maps: one after the other in one tensor.
template <typename Scalar, typename Bank>
void bind_maps(bindings<Scalar>& b, Bank& bank, const std::string& tensor, layout l) {
  for (index_t e = 0; e < bank.experts(); ++e)
    b.bind(tensor, bank.expert(e).weight(), e * bank.expert(e).weight().size(), l);
}

/// gate_proj, up_proj, down_proj, each [E, out, in].
template <typename Scalar, typename Bank>
void bind_gated(bindings<Scalar>& b, Bank& bank, const std::string& prefix = "experts.") {
  for (index_t e = 0; e < bank.experts(); ++e) {
    auto& expert = bank.expert(e);
    b.bind(prefix + "gate_proj", expert.gate(), e * expert.gate().size());
    b.bind(prefix + "up_proj", expert.up(), e * expert.up().size());
    b.bind(prefix + "down_proj", expert.down(), e * expert.down().size());
  }
}

/// weight1 [E,2H,D] holding the value rows first and the gate rows second, weight2 [E,D,H], biases likewise.
template <typename Scalar, typename Bank>
void bind_value_then_gate(bindings<Scalar>& b, Bank& bank, bool hidden_scale) {
  for (index_t e = 0; e < bank.experts(); ++e) {
    auto& expert = bank.expert(e);
    const index_t half = expert.up().size();
    const index_t hidden = expert.hidden();
    b.bind("experts.weight1", expert.up(), 2 * e * half);
    b.bind("experts.weight1", expert.gate(), (2 * e + 1) * half);
    b.bind("experts.bias1", expert.up_bias(), 2 * e * hidden);
    b.bind("experts.bias1", expert.gate_bias(), (2 * e + 1) * hidden);
    b.bind("experts.weight2", expert.down(), e * expert.down().size());
    b.bind("experts.bias2", expert.down_bias(), e * expert.outputs());
    if (hidden_scale) b.bind("experts.mult_bias", expert.hidden_scale(), e * hidden);
  }
}

}  // namespace oracle
