/// Pulls the experts of a bank together after an optimiser's step, and makes one expert of them in the end.
///
///   average_experts(bank, beta)    W_e <- (1 - beta) W_e + beta / (E - 1) * sum over the other experts j of W_j
///   mean_expert(bank)              one expert whose W is the mean of all
///
///   const linear_schedule beta{{.peak = 0.01, .floor = 0.01, .warmup = steps, .steps = steps}};   // rises all the way
///   optimizer.step(layer);
///   average_experts(layer.bank(), beta(step));
///   ...
///   dense_layer once{mean_expert(layer.bank())};
///
/// W stands for every parameter of an expert that is no state; all experts move at once, from their values before, so
/// the mean stays what it was: (1, 2, 6) with beta = 0.3 become (1.9, 2.45, 4.65). beta = (E - 1) / E makes all equal.
/// E = 1 is left alone. Experts must be alike: equal shapes. Sums are made in double. Meant for
/// router/fixed/random_partition.hpp, but any layer may be treated so. Huang et al. 2023, arXiv:2308.06093, eq. 3.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Collects the arrays of an expert that are averaged.
template <typename Scalar>
struct averaged_arrays {
  std::vector<parameter<Scalar>*>& found;

  template <typename Part>
  void operator()(std::string_view, Part& part) const {
    if constexpr (std::same_as<Part, parameter<Scalar>>) {
      if (part.role() != parameter_role::state) found.push_back(&part);
    } else {
      static_assert(HasParameters<Part>,
                    "sluice: experts are averaged in full precision; weights of another storage are only read");
      Part::visit_parameters(part, *this);
    }
  }
};

/// f(numbers) for every place of the experts' arrays, numbers[e] being the number of expert e there.
template <typename Scalar, typename Expert, typename F>
void for_each_place_of_experts(std::vector<Expert*>& experts, F&& f) {
  std::vector<std::vector<parameter<Scalar>*>> arrays(experts.size());
  for (std::size_t e = 0; e < experts.size(); ++e)
    Expert::visit_parameters(*experts[e], averaged_arrays<Scalar>{arrays[e]});
  for (std::size_t e = 0; e < arrays.size(); ++e) {
    const bool are_alike = std::ranges::equal(arrays[e], arrays.front(), [](const auto* a, const auto* b) {
      return std::ranges::equal(a->shape(), b->shape());
    });
    if (!are_alike) throw_invalid("experts that are averaged need equal shapes; expert ", e, " differs from expert 0");
  }
  std::vector<Scalar*> numbers(experts.size());
  for (std::size_t a = 0; a < arrays.front().size(); ++a) {
    for (std::size_t e = 0; e < experts.size(); ++e) numbers[e] = arrays[e][a]->data();
    for (std::size_t i = 0; i < arrays.front()[a]->value().size(); ++i) {
      f(numbers);
      for (Scalar*& number : numbers) ++number;
    }
  }
}

template <typename Scalar>
double sum_of_numbers(const std::vector<Scalar*>& numbers) {
  double sum = 0;
  for (const Scalar* number : numbers) sum += static_cast<double>(*number);
  return sum;
}

}  // namespace detail

/// A bank whose experts are objects with parameters.
template <typename Bank>
concept HoldsExperts = HasScalar<Bank> && HasExpertCount<Bank> && requires(Bank& bank) {
  requires HasParameters<std::remove_cvref_t<decltype(bank.expert(0))>>;
};

/// Throws std::invalid_argument unless 0 <= beta <= 1 and the experts are alike.
template <HoldsExperts Bank>
void average_experts(Bank& bank, double beta) {
  using scalar = typename Bank::scalar;
  if (!is_between(beta, 0, 1)) throw_invalid("experts are averaged with 0 <= beta <= 1, not ", beta);
  using expert_type = std::remove_reference_t<decltype(bank.expert(0))>;
  std::vector<expert_type*> experts;
  for (index_t e = 0; e < bank.experts(); ++e) experts.push_back(&bank.expert(e));
  if (experts.size() == 1) return;
  const double of_others = beta / static_cast<double>(experts.size() - 1);
  detail::for_each_place_of_experts<scalar>(experts, [&](const std::vector<scalar*>& numbers) {
    const double sum = detail::sum_of_numbers(numbers);
    for (scalar* number : numbers) {
      const auto own = static_cast<double>(*number);
      *number = static_cast<scalar>((1 - beta) * own + of_others * (sum - own));
    }
  });
}

/// Throws std::invalid_argument unless the experts are alike.
template <HoldsExperts Bank>
auto mean_expert(const Bank& bank) {
  using scalar = typename Bank::scalar;
  using expert_type = std::remove_cvref_t<decltype(bank.expert(0))>;
  std::vector<expert_type> copies;
  std::vector<expert_type*> experts;
  copies.reserve(static_cast<std::size_t>(bank.experts()));
  for (index_t e = 0; e < bank.experts(); ++e) experts.push_back(&copies.emplace_back(bank.expert(e)));
  detail::for_each_place_of_experts<scalar>(experts, [&](const std::vector<scalar*>& numbers) {
    *numbers.front() = static_cast<scalar>(detail::sum_of_numbers(numbers) / static_cast<double>(numbers.size()));
  });
  return std::move(copies.front());
}

}  // namespace sluice::inline SLUICE_ISA
