/// Plans and parameters as lists of numbers, so that the conformance kit can compare them.
#pragma once

#include <sluice/core/dense_plan.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/soft_plan.hpp>
#include <sluice/core/sparse_plan.hpp>

#include <vector>

namespace sluice::inline SLUICE_ISA::detail {

/// Every number that a plan says about one token, in plan order: equal for two plans exactly if they treat it alike.
template <typename Scalar>
std::vector<Scalar> words_about(const sparse_plan<Scalar>& plan, index_t token) {
  std::vector<Scalar> words;
  for (const index_t i : plan.of_token(token)) {
    words.push_back(static_cast<Scalar>(plan.expert(i)));
    words.push_back(static_cast<Scalar>(plan.rank(i)));
    words.push_back(plan.weight(i));
    words.push_back(plan.input_scale(i));
  }
  return words;
}
template <typename Scalar>
std::vector<Scalar> words_about(const soft_plan<Scalar>& plan, index_t token) {
  std::vector<Scalar> words(plan.dispatch().row(token), plan.dispatch().row(token) + plan.slot_count());
  words.insert(words.end(), plan.combine().row(token), plan.combine().row(token) + plan.slot_count());
  return words;
}

template <typename Scalar>
std::vector<Scalar> words_about(const dense_plan<Scalar>& plan, index_t token) {
  std::vector<Scalar> words;
  const auto routed = plan.routed_tokens();
  for (index_t j = 0; j < static_cast<index_t>(routed.size()); ++j)
    if (routed[as_size(j)] == token)
      for (index_t e = 0; e < plan.experts(); ++e) words.push_back(plan.weight(e, j));
  return words;
}

/// Everything that a plan says.
template <typename Plan>
std::vector<typename Plan::scalar> words_of(const Plan& plan) {
  using scalar = typename Plan::scalar;
  std::vector<scalar> words{static_cast<scalar>(plan.tokens()), static_cast<scalar>(plan.experts()),
                            static_cast<scalar>(plan.rows())};
  const auto add = [&](const auto& more) { words.insert(words.end(), more.begin(), more.end()); };
  for (index_t t = 0; t < plan.tokens(); ++t) add(words_about(plan, t));
  for (const row_range& own : plan.by_expert())
    add(std::vector<scalar>{static_cast<scalar>(own.expert), static_cast<scalar>(own.begin)});
  for (const index_t t : plan.invalid_tokens()) words.push_back(static_cast<scalar>(t));
  if constexpr (requires { plan.dropped(); }) {
    for (index_t i = 0; i < plan.rows(); ++i) words.push_back(static_cast<scalar>(plan.token(i)));
    for (const auto& d : plan.dropped())
      add(std::vector<scalar>{static_cast<scalar>(d.token), static_cast<scalar>(d.expert), static_cast<scalar>(d.rank),
                              static_cast<scalar>(d.slot), d.weight});
  }
  return words;
}

/// What a plan says about who meets whom, without weights: it changes exactly where a choice flips.
template <typename Scalar>
std::vector<index_t> choices_of(const sparse_plan<Scalar>& plan) {
  std::vector<index_t> choices;
  for (index_t i = 0; i < plan.rows(); ++i) {
    choices.push_back(plan.token(i));
    choices.push_back(plan.expert(i));
    choices.push_back(plan.rank(i));
  }
  for (const auto& d : plan.dropped()) {
    choices.push_back(d.token);
    choices.push_back(d.expert);
  }
  return choices;
}
template <typename Scalar>
std::vector<index_t> choices_of(const soft_plan<Scalar>&) {
  return {};
}
template <typename Scalar>
std::vector<index_t> choices_of(const dense_plan<Scalar>&) {
  return {};
}

/// All values, or all gradients, of an object one after another.
template <typename Object>
auto parameter_values(const Object& object) {
  using scalar = typename Object::scalar;
  std::vector<scalar> all;
  for_each_unnamed_parameter(object, [&](const auto& p) {
    for (index_t i = 0; i < p.size(); ++i) all.push_back(static_cast<scalar>(to_number(p.element_at(i))));
  });
  return all;
}
template <typename Object>
auto parameter_gradients(const Object& object) {
  std::vector<typename Object::scalar> all;
  for_each_unnamed_parameter(object,
                             [&](const auto& p) { all.insert(all.end(), p.gradient().begin(), p.gradient().end()); });
  return all;
}

}  // namespace sluice::inline SLUICE_ISA::detail
