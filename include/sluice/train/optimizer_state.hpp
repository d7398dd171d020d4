/// What an optimiser remembers about each learned array of a model: a step count and a few arrays of the same size.
///
/// Entries belong to parameters by name and size. They are made when a parameter is first seen; if the model changes
/// (an expert more, another width) the entries that still fit are kept and the others start afresh. A model of which
/// nothing was there in the last step is another model, even where names and sizes agree: it is refused. It may move; a
/// copy of it is another one. prepare() hands the entries over to any model, and so does copying an optimiser: the copy
/// belongs to the first model that it steps. While the model stays the same nothing is allocated. All of it can be
/// visited, with names such as "experts.0.up.moment", and so be saved.
#pragma once

#include <sluice/core/parameter.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Numbers a task: enough work to pay for handing a task out.
inline constexpr index_t optimizer_block = 16384;

/// Calls f(key, parameter) for every parameter, where the key is a hash of its name: names are compared without making
/// strings of them.
template <typename Object, typename F>
void for_each_keyed_parameter(Object& object, F&& f, std::uint64_t key = 1469598103934665603u) {
  using plain = std::remove_const_t<Object>;
  if constexpr (is_parameter<plain>) {
    f(key, object);
  } else if constexpr (HasParameters<plain>) {
    plain::visit_parameters(object, [&](std::string_view name, auto& part) {
      std::uint64_t longer = key;
      const auto add = [&](char c) { longer = (longer ^ static_cast<unsigned char>(c)) * 1099511628211u; };
      for (const char c : name) add(c);
      add('.');
      for_each_keyed_parameter(part, f, longer);
    });
  }
}

template <typename Scalar, typename P>
consteval bool explain_optimized() {
  if constexpr (is_parameter<P>) {
    static_assert(std::same_as<typename P::scalar, Scalar>,
                  "sluice: the optimiser is for another scalar than the model: adamw<float> trains a model of float");
  }
  return true;
}

/// Calls f(key..., parameter); one of another scalar is refused by a sentence, weights that are only read are passed
/// over.
template <typename Scalar, typename F>
auto for_optimized(F f) {
  return [f = std::move(f)](auto&&... key_and_parameter) {
    if constexpr (std::invocable<const F&, decltype(key_and_parameter)...>)
      f(key_and_parameter...);
    else
      static_assert((explain_optimized<Scalar, std::remove_cvref_t<decltype(key_and_parameter)>>() && ...));
  };
}

}  // namespace detail

template <FloatOrDouble Scalar, std::size_t Arrays>
class optimizer_state {
  /// The parameter that an entry belongs to; 0 after copying.
  struct entry_owner {
    std::uint64_t id = 0;

    entry_owner() = default;
    entry_owner(const entry_owner&) noexcept {}
    entry_owner(entry_owner&&) = default;
    entry_owner& operator=(const entry_owner&) noexcept {
      id = 0;
      return *this;
    }
    entry_owner& operator=(entry_owner&&) = default;
  };

public:
  struct entry {
    std::string name;
    std::uint64_t key = 0;
    entry_owner owner;
    /// Steps taken. In float it stays at 2^24, where bias corrections have long been 1.
    parameter<Scalar> steps;
    std::array<parameter<Scalar>, Arrays> arrays;  ///< empty for a frozen parameter that has never been trained
  };

  explicit optimizer_state(std::array<const char*, Arrays> array_names) : array_names_(array_names) {}

  /// Makes the entries for a model, also for another one than so far. If memory runs out, those that are there stay.
  template <typename Model>
  void prepare(Model& model) {
    if (!fits(model)) rebuild(model);
    visit_learned(model, [](const parameter<Scalar>& p, entry& e) {
      if (is_empty(e)) fill(e, p);
    });
  }

  /// Calls f(parameter, entry) for every parameter that is learned and has a gradient. All memory is taken before the
  /// first. Throws std::invalid_argument for another model than so far.
  template <typename Model, typename F>
  void for_each(Model& model, F&& f) {
    refuse_another(model);
    prepare(model);
    visit_learned(model, [&](parameter<Scalar>& p, entry& e) {
      if (p.has_gradient()) f(p, e);
    });
  }

  /// What is remembered of a row becomes zero, for a code or an expert that was replaced; the step count stays. Nothing
  /// happens if the parameter has never been trained.
  void forget_row(const parameter<Scalar>& p, index_t row) {
    for (entry& e : entries_) {
      if (e.owner.id != p.id() || is_empty(e)) continue;
      for (parameter<Scalar>& array : e.arrays)
        for (index_t i = row * p.cols(); i < (row + 1) * p.cols(); ++i) array.value()[as_size(p.place(i))] = 0;
    }
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    for (auto& e : self.entries_) {
      if (is_empty(e)) continue;
      visit(e.name + ".steps", e.steps);
      for (std::size_t a = 0; a < Arrays; ++a) visit(e.name + '.' + self.array_names_[a], e.arrays[a]);
    }
  }

private:
  static bool is_empty(const entry& e) { return e.steps.size() == 0; }

  static bool belongs(const entry& e, std::uint64_t key, const parameter<Scalar>& p) {
    const auto fits_size = [&](const parameter<Scalar>& array) { return std::ranges::equal(array.shape(), p.shape()); };
    return e.key == key && (is_empty(e) || std::all_of(e.arrays.begin(), e.arrays.end(), fits_size));
  }

  template <typename Model>
  bool fits(Model& model) const {
    std::size_t i = 0;
    bool all = true;
    detail::for_each_keyed_parameter(model, detail::for_optimized<Scalar>([&](std::uint64_t key, parameter<Scalar>& p) {
      if (p.role() == parameter_role::state) return;
      all = all && i < entries_.size() && entries_[i].owner.id == p.id() && belongs(entries_[i], key, p);
      ++i;
    }));
    return all && i == entries_.size();
  }

  template <typename Model>
  void refuse_another(Model& model) const {
    const bool is_free = std::ranges::all_of(entries_, [](const entry& e) { return e.owner.id == 0; });
    if (is_free || fits(model)) return;
    bool is_known = false;
    detail::for_each_unnamed_parameter(model, detail::for_optimized<Scalar>([&](const parameter<Scalar>& p) {
      is_known = is_known || std::ranges::any_of(entries_, [&](const entry& e) { return e.owner.id == p.id(); });
    }));
    if (!is_known)
      throw_invalid(
          "the optimiser remembers another model, whose moments would be mixed with this one's or lost: give each "
          "model an optimiser, or visit both as one; prepare(model) hands the optimiser over");
  }

  template <typename Model, typename F>
  void visit_learned(Model& model, F&& f) {
    std::size_t i = 0;
    detail::for_each_unnamed_parameter(model, detail::for_optimized<Scalar>([&](parameter<Scalar>& p) {
      if (p.role() == parameter_role::state) return;
      entry& e = entries_[i++];
      if (p.is_learned()) f(p, e);
    }));
  }

  static void fill(entry& e, const parameter<Scalar>& p) {
    parameter<Scalar> steps({1}, parameter_role::state);
    std::array<parameter<Scalar>, Arrays> arrays;
    for (parameter<Scalar>& array : arrays) array = p.zeros_like(parameter_role::state);
    e.steps = std::move(steps);
    e.arrays = std::move(arrays);
  }

  template <typename Model>
  void rebuild(Model& model) {
    std::vector<entry> fresh;
    std::vector<std::size_t> origin;  // where an entry comes from; entries_.size() = nowhere
    std::vector<char> taken(entries_.size(), 0);
    for_each_parameter(model, detail::for_optimized<Scalar>([&](const std::string& name, parameter<Scalar>& p) {
      if (p.role() == parameter_role::state) return;
      fresh.emplace_back();
      fresh.back().name = name;
      fresh.back().owner.id = p.id();
    }));
    std::size_t i = 0;
    detail::for_each_keyed_parameter(model, detail::for_optimized<Scalar>([&](std::uint64_t key, parameter<Scalar>& p) {
      if (p.role() == parameter_role::state) return;
      fresh[i++].key = key;
      std::size_t from = 0;
      while (from < entries_.size() && (taken[from] || !belongs(entries_[from], key, p))) ++from;
      if (from < entries_.size()) taken[from] = 1;
      origin.push_back(from);
    }));
    for (std::size_t e = 0; e < fresh.size(); ++e) {  // nothing from here on allocates
      if (origin[e] == entries_.size()) continue;
      fresh[e].steps = std::move(entries_[origin[e]].steps);
      fresh[e].arrays = std::move(entries_[origin[e]].arrays);
    }
    entries_ = std::move(fresh);
  }

  std::array<const char*, Arrays> array_names_;
  std::vector<entry> entries_;
};

}  // namespace sluice::inline SLUICE_ISA
