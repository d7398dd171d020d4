/// A bank of experts of one type: what a layer usually holds.
///
///   rows of expert e: offsets[e] .. offsets[e+1] of x [n,D] and y [n,D']
///
/// Tasks are (expert, block of rows), so a busy expert is shared by all threads and an expert without rows costs nothing.
/// Backward of a splittable expert (one made of linear maps) is cut the same way, its parameter gradients by slices of the
/// parameters; any other expert's backward is one task. Block borders depend on the loads only: equal bits for any thread
/// count. Experts may differ in hidden width. An expert without rows adds nothing to its gradients.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

struct no_options {};
template <typename Expert>
struct options_of_expert {
  using type = no_options;
};
template <typename Expert>
  requires requires { typename Expert::options; }
struct options_of_expert<Expert> {
  using type = typename Expert::options;
};
template <typename Expert>
using options_of = typename options_of_expert<Expert>::type;

}  // namespace detail

template <ExpertFunctor Expert>
class expert_bank {
public:
  using scalar = typename Expert::scalar;
  using expert_type = Expert;

  struct block {
    index_t expert;
    index_t begin;
    index_t end;
  };
  struct tape {
    buffer<block> blocks;
    matrix_buffer<scalar> saved;
  };

  /// `count` experts, each built from the same arguments. Throws std::invalid_argument if count < 1.
  template <typename... Arguments>
    requires std::constructible_from<Expert, const Arguments&...>
  explicit expert_bank(index_t count, const Arguments&... arguments) {
    if (count < 1) throw_invalid("expert_bank needs E >= 1, not ", count);
    experts_.reserve(static_cast<std::size_t>(count));
    for (index_t e = 0; e < count; ++e) experts_.emplace_back(arguments...);
  }

  /// `count` experts from braces, as in expert_bank<swiglu<float>>{8, 64, 128, {.bias = true}}.
  explicit expert_bank(index_t count, index_t inputs, index_t hidden, detail::options_of<Expert> o)
    requires std::constructible_from<Expert, index_t, index_t, detail::options_of<Expert>>
      : expert_bank(count, Expert(inputs, hidden, o)) {}

  /// Experts made elsewhere, of equal widths in and out.
  explicit expert_bank(std::vector<Expert> experts) : experts_(std::move(experts)) {
    if (experts_.empty()) throw_invalid("expert_bank needs at least one expert");
    for (const Expert& expert : experts_)
      if (expert.inputs() != inputs() || expert.outputs() != outputs())
        throw_invalid("experts of one bank need equal widths: ", inputs(), " -> ", outputs(), " and ", expert.inputs(), " -> ",
                      expert.outputs());
  }

  index_t experts() const noexcept { return static_cast<index_t>(experts_.size()); }
  index_t inputs() const noexcept { return experts_.front().inputs(); }
  index_t outputs() const noexcept { return experts_.front().outputs(); }
  Expert& expert(index_t e) noexcept { return experts_[static_cast<std::size_t>(e)]; }
  const Expert& expert(index_t e) const noexcept { return experts_[static_cast<std::size_t>(e)]; }

  void forward(tokens_in<scalar> x, std::span<const index_t> offsets, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    index_t columns = 0;
    for (const Expert& expert : experts_) columns = std::max<index_t>(columns, expert.saved_columns());
    t.saved.resize(rows_end(offsets) - offsets.front(), columns);
    cut(offsets, row_block, t.blocks);
    executor.parallel_for(t.blocks.size(), [&](index_t task) {
      const block& b = t.blocks[task];
      expert(b.expert).forward(x.middleRows(b.begin, b.end - b.begin), y.middleRows(b.begin, b.end - b.begin),
                               saved_rows(t, offsets, b));
    });
  }

  void backward(tokens_in<scalar> x, std::span<const index_t> offsets, tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t,
                const executor_ref& executor)
    requires DifferentiableExpert<Expert>
  {
    const auto rows = [](auto& m, const block& b) { return m.middleRows(b.begin, b.end - b.begin); };
    if constexpr (SplittableExpert<Expert>) {
      executor.parallel_for(t.blocks.size(), [&](index_t task) {
        const block& b = t.blocks[task];
        expert(b.expert).backward_inputs(rows(x, b), rows(dy, b), saved_rows(t, offsets, b), rows(dx, b));
      });
      cut(offsets, rows_end(offsets) + 1, t.blocks);  // one block an expert
      executor.parallel_for(t.blocks.size() * parameter_parts, [&](index_t task) {
        const block& b = t.blocks[task / parameter_parts];
        expert(b.expert).backward_parameters(rows(x, b), rows(dy, b), saved_rows(t, offsets, b), task % parameter_parts,
                                             parameter_parts);
      });
    } else {
      cut(offsets, rows_end(offsets) + 1, t.blocks);
      executor.parallel_for(t.blocks.size(), [&](index_t task) {
        const block& b = t.blocks[task];
        expert(b.expert).backward(rows(x, b), rows(dy, b), saved_rows(t, offsets, b), rows(dx, b));
      });
    }
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Expert>)
      for (std::size_t e = 0; e < self.experts_.size(); ++e) visit(std::to_string(e), self.experts_[e]);
  }

private:
  // Rows of one task: a block's activations should stay in the second-level cache beside a panel of weights.
  static constexpr index_t row_block = 32;
  // Slices of one expert's parameter gradients: enough to spread one busy expert over the threads of a large machine.
  static constexpr index_t parameter_parts = 8;

  static index_t rows_end(std::span<const index_t> offsets) { return offsets.back(); }

  void cut(std::span<const index_t> offsets, index_t size, buffer<block>& blocks) const {
    blocks.clear();
    for (index_t e = 0; e < experts(); ++e) {
      const index_t end = offsets[static_cast<std::size_t>(e) + 1];
      for (index_t begin = offsets[static_cast<std::size_t>(e)]; begin < end; begin += size)
        blocks.push_back({e, begin, std::min(begin + size, end)});
    }
  }

  auto saved_rows(tape& t, std::span<const index_t> offsets, const block& b) const {
    return t.saved.map().middleRows(b.begin - offsets.front(), b.end - b.begin).leftCols(expert(b.expert).saved_columns());
  }

  std::vector<Expert> experts_;
};

/// expert_bank bank(8, expert): eight copies of an expert.
template <ExpertFunctor Expert>
expert_bank(index_t, Expert) -> expert_bank<Expert>;

}  // namespace sluice::inline SLUICE_ISA
