/// Learned arrays and how they are visited by name: what initialisers, optimisers, gradient checks and files work on.
///
/// A parameter is an array of up to four axes with its gradient. Gradients appear (as zeros) when first asked for,
/// so a layer that only infers never pays for them; backward calls add into them and zero_gradients clears them.
/// A class with parameters has one function for all of that:
///
///   template <typename Self, typename Visitor>
///   static void visit_parameters(Self& self, Visitor&& visit) {
///     visit("weight", self.weight_);
///     visit("gate", self.gate_);
///   }
///
/// where each thing visited is a parameter or another class with parameters; names are joined by dots.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/half.hpp>
#include <sluice/core/identity.hpp>
#include <sluice/core/matrix_layout.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <array>
#include <cassert>
#include <concepts>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

/// What an optimiser may do with an array.
enum class parameter_role {
  weight,  ///< learned, weight decay applies
  vector,  ///< learned, no weight decay: biases, gains, temperatures, thresholds
  state,   ///< not learned by gradients but saved with the model: selection biases, live masks, controllers
};

/// How initialize() fills an array before training.
struct initial_values {
  enum class kind { constant, normal, uniform, computed } distribution = kind::constant;
  double scale = 0;  ///< the constant, the standard deviation, or the bound of U(-scale, scale)
  /// Computed: the value of an element in this column, of a draw from U(0, 1) of its own.
  double (*of)(index_t column, double draw) = nullptr;

  static initial_values constant(double value) { return {kind::constant, value, nullptr}; }
  static initial_values normal(double deviation) { return {kind::normal, deviation, nullptr}; }
  static initial_values uniform(double bound) { return {kind::uniform, bound, nullptr}; }
  static initial_values computed(double (*of_draw)(index_t column, double draw)) {
    return {kind::computed, 1, of_draw};
  }
};

/// An array of the model. Element is what it is kept as: Scalar, or a sixteen-bit type for weights that are only read.
///
/// A weight matrix may be kept in panels (core/matrix_layout.hpp). value() and gradient() are the memory as it lies,
/// which is all that an optimiser needs; whoever cares which element is which uses for_each_place, to_matrix and
/// assign.
template <FloatOrDouble Scalar, typename Element = Scalar>
class parameter {
public:
  using scalar = Scalar;
  using element = Element;
  /// Only full-precision arrays have gradients.
  static constexpr bool is_trainable = std::same_as<Scalar, Element>;

  parameter() = default;

  /// Throws std::invalid_argument if there are more than four axes or a negative one, or too many numbers, or if the
  /// initial values are not finite or have a deviation or bound below 0. Values start at zero, or at the constant if the
  /// initial values are one.
  parameter(std::initializer_list<index_t> shape, parameter_role role, initial_values initial = {},
            panel_shape panels = {})
      : role_(role), initial_(initial) {
    if (shape.size() > shape_.size()) throw_invalid("a parameter has at most 4 axes, not ", shape.size());
    if (!is_finite(initial.scale)) throw_invalid("a parameter cannot begin with ", initial.scale);
    if (initial.distribution != initial_values::kind::constant && initial.scale < 0)
      throw_invalid("a parameter cannot begin with a deviation or bound of ", initial.scale);
    index_t cols = 1;
    for (const index_t axis : shape) {
      if (axis < 0) throw_invalid("a parameter axis cannot be ", axis);
      if (rank_ > 0) cols = checked_product(cols, axis);
      shape_[rank_++] = axis;
    }
    layout_ = {rank_ == 0 ? 1 : shape_[0], cols, panels};
    values_.assign(layout_.stored_size(), Element{});
    has_values_ = size() == 0 || initial.distribution == initial_values::kind::constant;
    if (initial.distribution == initial_values::kind::constant && initial.scale != 0)
      fill([&](index_t) { return static_cast<Scalar>(initial.scale); });
  }

  /// Zeros of the same shape, kept in the same way: what an optimiser remembers about this array.
  parameter zeros_like(parameter_role role) const {
    parameter p;
    p.shape_ = shape_, p.rank_ = rank_, p.role_ = role, p.layout_ = layout_;
    p.values_.assign(values_.size(), Element{});
    return p;
  }

  std::span<const index_t> shape() const noexcept { return {shape_.data(), rank_}; }
  const matrix_layout& layout() const noexcept { return layout_; }
  /// First axis by the product of the others.
  index_t rows() const noexcept { return layout_.rows(); }
  index_t cols() const noexcept { return layout_.cols(); }
  index_t size() const noexcept { return rows() * cols(); }
  parameter_role role() const noexcept { return role_; }
  bool is_learned() const noexcept { return is_trainable && role_ != parameter_role::state && !frozen_; }
  const initial_values& initial() const noexcept { return initial_; }
  /// Which parameter this is, wherever it moves: a copy is another one (core/identity.hpp).
  std::uint64_t id() const noexcept { return identity_.number(); }

  /// A frozen parameter is left alone by optimisers. Experts' weights, which lie in panels, get no gradient either, nor
  /// memory for one; linear gates leave theirs at zero; that of anything else is still computed.
  void set_frozen(bool frozen) noexcept {
    frozen_ = frozen;
    if (!may_have_gradient()) gradient_ = {};
  }

  /// Whether it holds what it was meant to: its constant initial value, or what somebody wrote. Asking for a way to
  /// write counts as writing.
  bool has_values() const noexcept { return has_values_; }

  std::span<Element> value() noexcept { return {data(), static_cast<std::size_t>(values_.size())}; }
  std::span<const Element> value() const noexcept { return values_.span(); }
  Element* data() noexcept {
    if (!has_values_) has_values_ = true;  // several threads may ask at once, and then find it set
    return values_.data();
  }
  const Element* data() const noexcept { return values_.data(); }

  bool has_gradient() const noexcept { return gradient_.size() == values_.size(); }
  /// Makes room for the gradient, zeroed, if there is none and it may have one. Backward calls of one parameter from
  /// several threads need this to have happened before.
  void ensure_gradient() {
    if (may_have_gradient() && !has_gradient()) gradient_.assign(values_.size(), Scalar(0));
  }
  std::span<Scalar> gradient() {
    ensure_gradient();
    return gradient_.span();
  }
  std::span<const Scalar> gradient() const noexcept { return gradient_.span(); }
  void zero_gradient() noexcept { gradient_.fill(Scalar(0)); }

  /// Views of a row-major array.
  matrix_map<Element> map() noexcept {
    assert(layout_.is_row_major());
    return {data(), rows(), cols()};
  }
  const_matrix_map<Element> map() const noexcept {
    assert(layout_.is_row_major());
    return {values_.data(), rows(), cols()};
  }
  matrix_map<Scalar> gradient_map() {
    assert(layout_.is_row_major());
    return {gradient().data(), rows(), cols()};
  }

  /// Where element i of the row-major order lies in value() and gradient().
  index_t place(index_t i) const noexcept { return layout_.is_row_major() ? i : layout_.place(i / cols(), i % cols()); }

  /// Element i of the row-major order.
  Element element_at(index_t i) const noexcept { return values_[place(i)]; }
  /// Sets element i of the row-major order to f(i); with an executor that is called for many at once.
  template <typename F>
  void fill(F&& f, const executor_ref& executor = {}) {
    has_values_ = true;
    executor.parallel_blocks(rows(), 16, 16 * cols(), [&](index_t first, index_t last) {
      layout_.for_each_place(first, last,
                             [&](index_t i, index_t place) { values_[place] = to_element<Element>(f(i)); });
    });
  }
  /// Copies a matrix of the same shape, in any storage order. Throws std::invalid_argument for another shape.
  void assign(const detail::input_ref<Scalar>& values) {
    if (values.rows() != rows() || values.cols() != cols())
      throw_invalid("a parameter [", rows(), ", ", cols(), "] cannot take [", values.rows(), ", ", values.cols(), "]");
    fill([&](index_t i) { return values(i / cols(), i % cols()); });
  }
  matrix<Scalar> to_matrix() const { return unpacked(values_); }
  matrix<Scalar> gradient_matrix() const { return unpacked(gradient_); }

private:
  bool may_have_gradient() const noexcept { return is_trainable && !(frozen_ && !layout_.is_row_major()); }

  template <typename Kept>
  matrix<Scalar> unpacked(const buffer<Kept>& kept) const {
    matrix<Scalar> m = matrix<Scalar>::Zero(rows(), cols());
    if (!kept.empty()) layout_.for_each_place([&](index_t i, index_t place) { m.data()[i] = to_number(kept[place]); });
    return m;
  }

  std::array<index_t, 4> shape_{};
  std::size_t rank_ = 0;
  parameter_role role_ = parameter_role::weight;
  bool frozen_ = false;
  bool has_values_ = true;
  initial_values initial_;
  matrix_layout layout_;
  buffer<Element> values_;
  buffer<Scalar> gradient_;
  identity identity_;
};

namespace detail {

struct ignore_parameters {
  template <typename Thing>
  void operator()(std::string_view, Thing&) const {}
};

template <typename T>
inline constexpr bool is_parameter = false;
template <typename Scalar, typename Element>
inline constexpr bool is_parameter<parameter<Scalar, Element>> = true;

}  // namespace detail

/// A class whose parameters can be visited.
template <typename T>
concept HasParameters = requires(T& object) {
  T::visit_parameters(object, detail::ignore_parameters{});
};

namespace detail {

// A class that derives from both finds visit_parameters in two places exactly if T has the name, whatever it stands for
// and whoever may call it.
struct has_the_name {
  int visit_parameters;
};
template <typename T>
struct has_the_name_twice : T, has_the_name {};

template <typename T>
concept NamesParameters =
    std::is_class_v<T> && !std::is_final_v<T> && !requires { &has_the_name_twice<T>::visit_parameters; };

/// Parameters that nobody can visit would stay as they are without a word.
template <typename T>
consteval bool explain_parameters() {
  static_assert(HasParameters<T> || !NamesParameters<T>,
                "sluice: visit_parameters has to be a public `static void visit_parameters(auto& self, auto&& visit)`");
  return true;
}

}  // namespace detail

/// static_assert(explain_model<my_model>()): what optimisers and files need.
template <typename T>
consteval bool explain_model() {
  static_assert(detail::explain_parameters<T>());
  static_assert(HasParameters<T> || detail::is_parameter<T>,
                "sluice: a model needs a public `static void visit_parameters(auto& self, auto&& visit)` that calls "
                "visit(\"name\", part) for each of its parts");
  return true;
}

namespace detail {

/// "experts.3" and "gate" are "experts.3.gate". An empty name: the part is the whole of what bears the name before it.
inline std::string joined_name(const std::string& prefix, std::string_view name) {
  if (prefix.empty()) return std::string(name);
  if (name.empty()) return prefix;
  return (prefix + '.').append(name);
}

// Visitors of a walk are classes of F alone and no lambdas of the object's type: the way through an expert or a gate is
// compiled once, whatever it is a part of.
template <typename F>
struct named_walk {
  F& f;
  const std::string& prefix;

  template <typename Part>
  void operator()(std::string_view own_name, Part& part) const {
    using plain = std::remove_const_t<Part>;
    const std::string name = joined_name(prefix, own_name);
    if constexpr (is_parameter<plain>)
      f(name, part);
    else if constexpr (HasParameters<plain>)
      plain::visit_parameters(part, named_walk{f, name});
    else
      static_assert(explain_parameters<plain>());
  }
};

template <typename F>
struct unnamed_walk {
  F& f;

  template <typename Part>
  void operator()(std::string_view, Part& part) const {
    using plain = std::remove_const_t<Part>;
    if constexpr (is_parameter<plain>)
      f(part);
    else if constexpr (HasParameters<plain>)
      plain::visit_parameters(part, unnamed_walk{f});
    else
      static_assert(explain_parameters<plain>());
  }
};

}  // namespace detail

/// Calls f(name, parameter) for every parameter of an object, depth first, in a fixed order, with names such as
/// "experts.3.gate.weight". Objects without parameters are fine.
template <typename Object, typename F>
void for_each_parameter(Object& object, F&& f, const std::string& prefix = {}) {
  detail::named_walk<std::remove_reference_t<F>>{f, prefix}({}, object);
}

namespace detail {

/// The same without names, for the hot road.
template <typename Object, typename F>
void for_each_unnamed_parameter(Object& object, F&& f) {
  unnamed_walk<std::remove_reference_t<F>>{f}({}, object);
}

// What is asked of the parameters of many classes is of few types, one for each way to look at them: each is compiled
// for every class.

enum class gradient_care { ensure, zero };

struct care_for_gradient {
  gradient_care care;

  template <typename Parameter>
  void operator()(Parameter& p) const {
    if (care == gradient_care::ensure)
      p.ensure_gradient();
    else
      p.zero_gradient();
  }
};

struct stock_of_parameters {
  index_t learned = 0;
  bool has_values = true;

  template <typename Parameter>
  void operator()(const Parameter& p) {
    if (p.role() != parameter_role::state) learned += p.size();
    has_values = has_values && p.has_values();
  }
};

template <typename Object>
stock_of_parameters stock_of(const Object& object) {
  stock_of_parameters stock;
  for_each_unnamed_parameter(object, stock);
  return stock;
}

struct refuse_without_values {
  template <typename Parameter>
  void operator()(const std::string& name, const Parameter& p) const {
    if (!p.has_values())
      throw_invalid("nobody has set the parameter \"", name,
                    "\": call initialize(layer, seed), load a file, or write its values");
  }
};

}  // namespace detail

/// Makes room for every gradient of an object.
template <typename Object>
void ensure_gradients(Object& object) {
  detail::for_each_unnamed_parameter(object, detail::care_for_gradient{detail::gradient_care::ensure});
}

/// Sets every gradient of an object to zero.
template <typename Object>
void zero_gradients(Object& object) {
  detail::for_each_unnamed_parameter(object, detail::care_for_gradient{detail::gradient_care::zero});
}

/// Throws std::invalid_argument, with its name, for a parameter of random initial values that nobody wrote: it holds
/// zeros, which route by ties and learn nothing. The name begins with `prefix`.
template <typename Object>
void check_initialized(const Object& object, const char* prefix = "") {
  if (!detail::stock_of(object).has_values) for_each_parameter(object, detail::refuse_without_values{}, prefix);
}

/// Number of learned numbers in an object.
template <typename Object>
index_t parameter_count(const Object& object) {
  return detail::stock_of(object).learned;
}

}  // namespace sluice::inline SLUICE_ISA
