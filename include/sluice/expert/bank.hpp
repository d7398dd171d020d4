/// A bank of experts of one type: what a layer usually holds.
///
///   rows of expert e: rows.of(e) of x [n,D] and y [n,D']
///
/// Experts made of linear maps (ffn, gated_ffn) run together through the kernels of expert/grouped_forward.hpp and
/// grouped_backward.hpp, which also gather rows and add them up (forward_routed). Any other expert, yours too, is
/// called with blocks of rows: tasks are (expert, block), its backward is one task. Either way a busy expert is shared
/// by all threads, an expert without rows costs nothing and adds nothing to its gradients, and bits do not depend on
/// the thread count. Experts may differ in hidden width.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/expert/grouped_backward.hpp>
#include <sluice/expert/grouped_forward.hpp>

#include <algorithm>
#include <concepts>
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

/// Memory of a bank whose experts are called one by one.
template <typename Scalar>
struct block_memory {
  buffer<row_range> blocks;
  matrix_buffer<Scalar> saved;
};

template <typename Expert>
struct memory_of {
  using type = block_memory<typename Expert::scalar>;
};
template <MadeOfLinearMaps Expert>
struct memory_of<Expert> {
  using type = grouped_memory<Expert>;
};

}  // namespace detail

template <typename Expert>
class expert_bank {
  static_assert(explain_expert<Expert>());

public:
  using scalar = typename Expert::scalar;
  using expert_type = Expert;

  using tape = typename detail::memory_of<Expert>::type;

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
        throw_invalid("experts of one bank need equal widths: ", inputs(), " -> ", outputs(), " and ", expert.inputs(),
                      " -> ", expert.outputs());
  }

  index_t experts() const noexcept { return static_cast<index_t>(experts_.size()); }
  index_t inputs() const noexcept { return experts_.front().inputs(); }
  index_t outputs() const noexcept { return experts_.front().outputs(); }
  /// Another bank: so many copies of the first expert.
  expert_bank copies_of_first(index_t count) const { return expert_bank(count, experts_.front()); }
  Expert& expert(index_t e) noexcept { return experts_[static_cast<std::size_t>(e)]; }
  const Expert& expert(index_t e) const noexcept { return experts_[static_cast<std::size_t>(e)]; }

  /// Makes room for calls of up to so many rows, whichever experts they go to, and says whether backward calls will
  /// follow.
  void prepare(tape& t, index_t rows, bool training) const {
    if constexpr (MadeOfLinearMaps<Expert>) {
      using forward_type = detail::grouped_forward<Expert>;
      t.keep = training && DifferentiableExpert<Expert>;
      bool has_room = forward_type::has_room(t, rows, inputs());
      if constexpr (MadeOfTrainableMaps<Expert>)
        has_room = has_room && (!training || detail::grouped_backward<Expert>::has_room(t, rows, outputs()));
      if (has_room) return;
      const index_t hidden = widest();
      forward_type::reserve(t, rows, experts(), inputs(), hidden, outputs());
      if constexpr (MadeOfTrainableMaps<Expert>)
        if (training)
          detail::grouped_backward<Expert>::reserve(t, rows, experts(), inputs(), hidden, outputs());
    } else {
      // A block has a row at least. Blocks come last: where they have room, everything has.
      if (t.blocks.capacity() >= rows) return;
      t.saved.reserve(rows, most_saved_columns());
      t.blocks.reserve(rows);
    }
  }

  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    if constexpr (MadeOfLinearMaps<Expert>)
      forward_routed(x, {.by_expert = rows}, y, t, executor);
    else
      forward_blocks(x, rows, y, t, executor);
  }

  void backward(tokens_in<scalar> x, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx,
                tape& t, const executor_ref& executor)
    requires DifferentiableExpert<Expert>
  {
    if constexpr (MadeOfLinearMaps<Expert>) {
      dx.middleRows(rows.first_row(), rows.rows()).setZero();
      backward_routed(x, {.by_expert = rows}, dy, dx, t, nullptr, nullptr, executor);
    } else {
      backward_blocks(x, rows, dy, dx, t, executor);
    }
  }

  /// Dispatch, experts and combine in one: adds the weighted sums of its tokens' experts into y.
  void forward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_out<scalar> y, tape& t,
                      const executor_ref& executor) const
    requires MadeOfLinearMaps<Expert>
  {
    const const_experts expert_of{*this};
    detail::grouped_forward<Expert>(rows, expert_of, inputs(), outputs(), t, executor).run(x, y, expert_of);
  }

  /// For the last forward_routed with this tape and t.keep, any number of times: adds into dx and the gradients, and
  /// writes for every row the gradients of its weight and of its input scale where the pointers are not null.
  void backward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_in<scalar> dy,
                       tokens_out<scalar> dx, tape& t, scalar* dweight, scalar* dinput_scale,
                       const executor_ref& executor)
    requires MadeOfTrainableMaps<Expert>
  {
    const auto expert_of = [this](index_t e) -> Expert& { return expert(e); };
    detail::grouped_forward<Expert>(rows, expert_of, inputs(), outputs(), t, executor).restore(const_experts{*this});
    detail::grouped_backward<Expert>(rows, expert_of, inputs(), outputs(), t, executor)
        .run(x, dy, dx, dweight, dinput_scale, expert_of);
  }

  /// Bytes of a tape that has run `rows` rows, forward or (training) both ways.
  index_t workspace_bytes(index_t rows, bool training) const {
    if constexpr (MadeOfLinearMaps<Expert>) {
      const index_t hidden = widest();
      return detail::grouped_forward<Expert>::bytes(rows, experts(), inputs(), hidden, outputs()) +
             (training ? detail::grouped_training_bytes<Expert>(rows, experts(), inputs(), hidden, outputs()) : 0);
    } else {
      return rows * (most_saved_columns() * static_cast<index_t>(sizeof(scalar)) +
                     static_cast<index_t>(sizeof(row_range)));
    }
  }

  /// The same bank with the weights of its experts rounded to another storage.
  template <MapStorage Storage>
    requires requires(const Expert& e) { e.template stored_as<Storage>(); }
  auto stored_as(const Storage& format = {}) const {
    return rebuilt([&](const Expert& e, index_t) { return e.template stored_as<Storage>(format); });
  }
  /// The same, to what format(expert, matrix) says; experts say how they count their matrices.
  template <MapStorage Storage, std::invocable<index_t, int> Format>
  auto stored_as(const Format& format) const {
    return rebuilt([&](const Expert& expert, index_t e) {
      return expert.template stored_as<Storage>([&](int matrix) -> Storage { return format(e, matrix); });
    });
  }

  static consteval bool explain_training() { return explain_differentiable_expert<Expert>(); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Expert>)
      for (std::size_t e = 0; e < self.experts_.size(); ++e) visit(std::to_string(e), self.experts_[e]);
  }

private:
  /// One type for all calls that only read, so that their kernels are compiled once.
  struct const_experts {
    const expert_bank& bank;
    const Expert& operator()(index_t e) const noexcept { return bank.expert(e); }
  };

  template <typename F>
  auto rebuilt(F&& made_of) const {
    using other = std::remove_cvref_t<decltype(made_of(expert(0), index_t(0)))>;
    std::vector<other> converted;
    converted.reserve(experts_.size());
    for (index_t e = 0; e < experts(); ++e) converted.push_back(made_of(expert(e), e));
    return expert_bank<other>(std::move(converted));
  }

  // Rows of one task: enough to repay handing it out, few enough to spread.
  static constexpr index_t row_block = 32;

  index_t widest() const
    requires MadeOfLinearMaps<Expert>
  {
    index_t hidden = 0;
    for (const Expert& e : experts_) hidden = (std::max)(hidden, e.last_map().inputs());
    return hidden;
  }
  index_t most_saved_columns() const {
    index_t columns = 0;
    for (const Expert& e : experts_) columns = (std::max<index_t>)(columns, e.saved_columns());
    return columns;
  }

  void forward_blocks(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
                      const executor_ref& executor) const {
    cut(rows, row_block, t.blocks);
    index_t columns = 0;
    for (const row_range& b : t.blocks) columns = (std::max<index_t>)(columns, expert(b.expert).saved_columns());
    t.saved.resize(rows.rows(), columns);
    executor.parallel_for(t.blocks.size(), [&](index_t task) {
      const row_range& b = t.blocks[task];
      expert(b.expert).forward(x.middleRows(b.begin, b.size()), y.middleRows(b.begin, b.size()),
                               saved_rows(t, rows.first_row(), b));
    });
  }

  void backward_blocks(tokens_in<scalar> x, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx,
                       tape& t, const executor_ref& executor) {
    const auto rows_of = [](auto& m, const row_range& b) { return m.middleRows(b.begin, b.size()); };
    cut(rows, rows.rows() + 1, t.blocks);  // one block an expert
    executor.parallel_for(t.blocks.size(), [&](index_t task) {
      const row_range& b = t.blocks[task];
      expert(b.expert).backward(rows_of(x, b), rows_of(dy, b), saved_rows(t, rows.first_row(), b), rows_of(dx, b));
    });
  }

  static void cut(const expert_rows& rows, index_t size, buffer<row_range>& blocks) {
    blocks.clear();
    for (const row_range& own : rows)
      for (index_t begin = own.begin; begin < own.end; begin += size)
        blocks.push_back({own.expert, begin, (std::min)(begin + size, own.end)});
  }

  auto saved_rows(tape& t, index_t first_row, const row_range& b) const {
    return t.saved.map().middleRows(b.begin - first_row, b.size()).leftCols(expert(b.expert).saved_columns());
  }

  std::vector<Expert> experts_;
};

/// expert_bank bank(8, expert): eight copies of an expert.
template <typename Expert>
expert_bank(index_t, Expert) -> expert_bank<Expert>;

}  // namespace sluice::inline SLUICE_ISA
