/// Many linear experts in one factorised tensor, mixed by dense gates: no expert's matrix is ever built.
///
///   gates a_l [T,N_l] of levels l = 0 .. n-1, tokens z [T,I] -> y [T,O]
///   v_l = F_l a_l,  v_n = F_n z + b;   s = contraction(v_0 .. v_n) (contraction.hpp);   y = F_out s, or F_out (core s)
///
/// That is y_o = sum over experts and inputs of a_0 .. a_n-1 z_i W[.., i, o], for as much as four small products: of
/// CP, 2 R (sum N_l + I + O) operations a token. F are linear maps (expert/linear.hpp) and run on the grouped kernels,
/// forward and backward. With the bias b the token carries a trailing 1 into its factor, so that every expert has a
/// bias of its own. Tokens each on their own; equal bits for every thread count. multilinear_layer.hpp makes the gates.
#pragma once

#include <sluice/core/random.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/layer/multilinear/contraction.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename Contraction = elementwise_contraction>
class multilinear_map {
  using bank_type = expert_bank<linear_expert<Scalar>>;

public:
  using scalar = Scalar;
  struct options {
    bool bias = true;
    index_t core = 0;  ///< width between the core and F_out; 0: no core
  };
  struct memory {
    std::array<index_t, 2> rows{};                ///< all of them, for the one expert of a bank
    std::vector<typename bank_type::tape> tapes;  ///< of F_0 .. F_n, the core, F_out
    std::vector<matrix_buffer<Scalar>> v, dv;
    matrix_buffer<Scalar> s, ds, inner, dinner;
    matrix_buffer<Scalar> scratch;  ///< [blocks of rows, scratch of the contraction]
    buffer<const Scalar*> from;     ///< [blocks of rows, vectors]
    buffer<Scalar*> to;
  };

  /// `experts` are N_l. Throws std::invalid_argument if they are not as many as the contraction has levels.
  multilinear_map(std::vector<index_t> experts, index_t inputs, index_t outputs, Contraction contraction,
                  options o = {})
      : contraction_(std::move(contraction)), has_core_(o.core > 0) {
    const auto levels = static_cast<index_t>(experts.size());
    if (levels + 1 != contraction_.vectors())
      throw_invalid("gates of ", levels, " levels and a token do not fit a contraction of ", contraction_.vectors(),
                    " vectors");
    for (index_t l = 0; l < levels; ++l) factors_.push_back(map(experts[as_size(l)], contraction_.width(l), false));
    factors_.push_back(map(inputs, contraction_.width(levels), o.bias));
    if (has_core_) factors_.push_back(map(contraction_.product(), o.core, false));
    factors_.push_back(map(has_core_ ? o.core : contraction_.product(), outputs, false));
  }

  index_t levels() const noexcept { return contraction_.vectors() - 1; }
  index_t experts(index_t level) const noexcept { return factors_[as_size(level)].inputs(); }
  index_t inputs() const noexcept { return factors_[as_size(levels())].inputs(); }
  index_t outputs() const noexcept { return factors_.back().outputs(); }
  const Contraction& contraction() const noexcept { return contraction_; }
  bool has_core() const noexcept { return has_core_; }
  /// F_0 .. F_n, the core if there is one, F_out.
  linear_expert<Scalar>& factor(index_t i) noexcept { return factors_[as_size(i)].expert(0); }
  index_t factors() const noexcept { return static_cast<index_t>(factors_.size()); }

  /// Begins as in the paper: experts much alike, the map nearly a single linear one. Columns of F_0 are the
  /// contraction's neutral vector, its ones drawn from N(1, 1), those of further levels the vector itself; all else is
  /// uniform.
  void initialize_alike(std::uint64_t seed) {
    for (index_t f = 0; f < factors(); ++f) {
      auto& weight = factor(f).weight();
      const random_source random = random_source(seed).split(f);
      const index_t inputs = factor(f).inputs();
      const double bound = 1 / std::sqrt(static_cast<double>(inputs));
      const auto uniform = [&](index_t i) { return bound * (2 * random.uniform(initial_site, i) - 1); };
      weight.fill([&](index_t i) {
        if (f >= levels()) return static_cast<Scalar>(uniform(i));
        const auto neutral = static_cast<double>(contraction_.neutral(f, i / inputs));
        return static_cast<Scalar>(f == 0 ? neutral * (1 + random.normal(initial_site, i)) : neutral);
      });
      auto& bias = factor(f).bias();
      bias.fill([&](index_t i) { return static_cast<Scalar>(uniform(weight.size() + i)); });
    }
  }

  /// gate(l) is a_l [T,N_l] as a view.
  template <typename GateOf>
  void forward(const GateOf& gate, tokens_in<Scalar> z, tokens_out<Scalar> y, memory& m, bool training,
               const executor_ref& executor) const {
    make_room(m, z.rows(), training);
    for (index_t l = 0; l < levels(); ++l) run(l, gate(l), m.v[as_size(l)].map(), m, executor);
    run(levels(), z, m.v[as_size(levels())].map(), m, executor);
    for_blocks(m, executor, [&](index_t r, const Scalar** from, Scalar**, Scalar* scratch) {
      contraction_.contract(from, m.s.row(r), scratch);
    });
    if (has_core_) run(levels() + 1, m.s.map(), m.inner.map(), m, executor);
    run(factors() - 1, has_core_ ? m.inner.map() : m.s.map(), y, m, executor);
  }

  /// Overwrites the gradients of the gates, dgate(l) [T,N_l], and dz; adds into the factors'.
  template <typename GateOf, typename GateGradientOf>
  void backward(const GateOf& gate, tokens_in<Scalar> z, tokens_in<Scalar> dy, const GateGradientOf& dgate,
                tokens_out<Scalar> dz, memory& m, const executor_ref& executor) {
    run_back(factors() - 1, has_core_ ? m.inner.map() : m.s.map(), dy, has_core_ ? m.dinner.map() : m.ds.map(), m,
             executor);
    if (has_core_) run_back(levels() + 1, m.s.map(), m.dinner.map(), m.ds.map(), m, executor);
    for_blocks(m, executor, [&](index_t r, const Scalar** from, Scalar** to, Scalar* scratch) {
      contraction_.backward(from, m.ds.row(r), to, scratch);
    });
    for (index_t l = 0; l < levels(); ++l) run_back(l, gate(l), m.dv[as_size(l)].map(), dgate(l), m, executor);
    run_back(levels(), z, m.dv[as_size(levels())].map(), dz, m, executor);
  }

  /// Numbers that a token's vectors take.
  index_t token_numbers() const {
    index_t numbers = contraction_.product() + (has_core_ ? factors_.back().inputs() : 0);
    for (index_t l = 0; l < contraction_.vectors(); ++l) numbers += contraction_.width(l);
    return numbers;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    const auto last = self.factors_.size() - 1;
    for (std::size_t i = 0; i <= last; ++i) {
      const bool is_core = self.has_core_ && i + 1 == last;
      visit(i == last ? "out" : is_core ? "core" : "factor." + std::to_string(i), self.factors_[i].expert(0));
    }
  }

private:
  static constexpr index_t row_block = 32;
  static constexpr random_site initial_site{"multilinear.initial"};

  static bank_type map(index_t inputs, index_t outputs, bool bias) {
    return bank_type(1, linear_expert<Scalar>(inputs, outputs, {.bias = bias}));
  }

  void make_room(memory& m, index_t tokens, bool training) const {
    const auto vectors = as_size(contraction_.vectors());
    m.rows = {0, tokens};
    if (m.tapes.size() != factors_.size()) m.tapes.resize(factors_.size());
    for (auto* all : {&m.v, &m.dv})
      if (all->size() != vectors) all->resize(vectors);
    for (std::size_t l = 0; l < vectors; ++l) {
      const index_t width = contraction_.width(static_cast<index_t>(l));
      m.v[l].resize(tokens, width);
      if (training) m.dv[l].resize(tokens, width);
    }
    m.s.resize(tokens, contraction_.product());
    if (training) m.ds.resize(tokens, contraction_.product());
    if (has_core_) m.inner.resize(tokens, factors_.back().inputs());
    if (has_core_ && training) m.dinner.resize(tokens, factors_.back().inputs());
    const index_t blocks = (tokens + row_block - 1) / row_block;
    m.scratch.resize(blocks, contraction_.scratch());
    m.from.resize(blocks * contraction_.vectors());
    m.to.resize(blocks * contraction_.vectors());
    for (std::size_t i = 0; i < factors_.size(); ++i) factors_[i].prepare(m.tapes[i], tokens, training);
  }

  void run(index_t i, tokens_in<Scalar> in, tokens_out<Scalar> out, memory& m, const executor_ref& executor) const {
    factors_[as_size(i)].forward(in, expert_rows(m.rows), out, m.tapes[as_size(i)], executor);
  }
  void run_back(index_t i, tokens_in<Scalar> in, tokens_in<Scalar> dout, tokens_out<Scalar> din, memory& m,
                const executor_ref& executor) {
    factors_[as_size(i)].backward(in, expert_rows(m.rows), dout, din, m.tapes[as_size(i)], executor);
  }

  /// f(row, its vectors, their gradients, scratch).
  template <typename F>
  void for_blocks(memory& m, const executor_ref& executor, F&& f) const {
    const index_t vectors = contraction_.vectors();
    executor.parallel_blocks(m.s.rows(), row_block, 2 * contraction_.scratch(), [&](index_t begin, index_t end) {
      const Scalar** const from = m.from.data() + begin / row_block * vectors;
      Scalar** const to = m.to.data() + begin / row_block * vectors;
      for (index_t r = begin; r < end; ++r) {
        for (index_t l = 0; l < vectors; ++l) {
          from[l] = m.v[as_size(l)].row(r);
          to[l] = m.dv[as_size(l)].empty() ? nullptr : m.dv[as_size(l)].row(r);
        }
        f(r, from, to, m.scratch.row(begin / row_block));
      }
    });
  }

  Contraction contraction_;
  bool has_core_;
  std::vector<bank_type> factors_;
};

}  // namespace sluice::inline SLUICE_ISA
