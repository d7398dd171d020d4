/// Experts of two banks one behind the other: expert e is the second bank's after the first bank's.
///
///   f_e(x) = second_e(first_e(x))       rows of expert e: z = first_e(x) [n,M],  y = second_e(z) [n,D']
///   dz = second_e's dx of dy;   dx = first_e's dx of dz
///
///   chained_bank deep{expert_bank<ffn<float, elu>>{8, 64, 128}, expert_bank<linear_expert<float>>{8, 64, 32}};
///   chained_bank deeper{expert_bank<activated_expert<float, elu>>{8, 24, 64}, std::move(deep)};
///
/// So experts have as many maps as wanted, and each bank runs all its rows together in its own way. Rows, NaN and
/// experts without rows are the banks' affair; z is kept for the way back. Parameters: "first.3.weight",
/// "second.3.weight". The banks convert to other storages each on its own.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/error.hpp>
#include <sluice/expert/bank_decorator.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// One expert of a chain: a view of its two halves.
template <typename First, typename Second>
struct chained_experts {
  First first;
  Second second;

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("first", self.first);
    visit("second", self.second);
  }
};

/// An expert, or the view of one, as a member that refers to it.
template <typename Bank>
using expert_of_bank = decltype(std::declval<Bank&>().expert(index_t()));

}  // namespace detail

template <typename First, typename Second>
class chained_bank : public bank_decorator<chained_bank<First, Second>, First, Second> {
  friend bank_decorator<chained_bank, First, Second>;
  static_assert(std::same_as<typename First::scalar, typename Second::scalar>,
                "sluice: banks of one chain need the same scalar");

public:
  using scalar = typename First::scalar;
  struct tape {
    typename First::tape first;
    typename Second::tape second;
    matrix_buffer<scalar> between;   ///< z
    matrix_buffer<scalar> dbetween;  ///< dz
  };

  /// Throws std::invalid_argument unless there are as many experts in both, and the second reads what the first gives.
  chained_bank(First first, Second second) : first_(std::move(first)), second_(std::move(second)) {
    if (first_.experts() != second_.experts() || first_.outputs() != second_.inputs())
      throw_invalid("a chain needs banks of as many experts, the second reading what the first gives: ",
                    first_.experts(), " experts that give ", first_.outputs(), " numbers, then ", second_.experts(),
                    " that read ", second_.inputs());
  }

  index_t experts() const noexcept { return first_.experts(); }
  index_t inputs() const noexcept { return first_.inputs(); }
  index_t outputs() const noexcept { return second_.outputs(); }
  First& first() noexcept { return first_; }
  const First& first() const noexcept { return first_; }
  Second& second() noexcept { return second_; }
  const Second& second() const noexcept { return second_; }

  /// Both halves of expert e, whose parameters may be visited.
  auto expert(index_t e) noexcept {
    return detail::chained_experts<detail::expert_of_bank<First>, detail::expert_of_bank<Second>>{first_.expert(e),
                                                                                                  second_.expert(e)};
  }
  auto expert(index_t e) const noexcept {
    return detail::chained_experts<detail::expert_of_bank<const First>, detail::expert_of_bank<const Second>>{
        first_.expert(e), second_.expert(e)};
  }
  /// Another bank: so many copies of the first expert.
  chained_bank copies_of_first(index_t count) const {
    return {first_.copies_of_first(count), second_.copies_of_first(count)};
  }

  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    t.between.resize(x.rows(), first_.outputs());
    first_.forward(x, rows, t.between.map(), t.first, executor);
    second_.forward(t.between.map(), rows, y, t.second, executor);
  }

  void backward(tokens_in<scalar> x, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t,
                const executor_ref& executor) requires DifferentiableBank<First> && DifferentiableBank<Second> {
    t.dbetween.resize(x.rows(), first_.outputs());
    second_.backward(t.between.map(), rows, dy, t.dbetween.map(), t.second, executor);
    first_.backward(x, rows, t.dbetween.map(), dx, t.first, executor);
  }

  index_t workspace_bytes(index_t rows, bool training) const {
    const index_t own = rows * first_.outputs() * static_cast<index_t>(sizeof(scalar));
    return detail::bank_bytes(first_, rows, training) + detail::bank_bytes(second_, rows, training) +
           (training ? 2 : 1) * own;
  }

  /// The same bank with the weights of its experts rounded to another storage.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    auto first = first_.template stored_as<Storage>(format...);
    auto second = second_.template stored_as<Storage>(format...);
    return chained_bank<decltype(first), decltype(second)>(std::move(first), std::move(second));
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<First>) visit("first", self.first_);
    if constexpr (HasParameters<Second>) visit("second", self.second_);
  }

private:
  template <typename F>
  void for_each_bank(tape& t, F&& f) const {
    f(first_, t.first, 0);
    f(second_, t.second, 0);
  }
  void prepare_own(tape& t, index_t rows, bool training) const {
    t.between.reserve(rows, first_.outputs());
    if (training) t.dbetween.reserve(rows, first_.outputs());
  }

  First first_;
  Second second_;
};

}  // namespace sluice::inline SLUICE_ISA
