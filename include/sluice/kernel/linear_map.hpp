/// A linear map y = W x whose weights lie in panels, in the storage of your choice: what feed-forward experts are made
/// of.
///
///   W [out,in]   panel p holds the weights to outputs p L .. p L + L - 1 (kernel/storage.hpp)
///
/// There is one copy of the weights, the panels; a gradient lies in panels too. Reading and writing by element or as a
/// matrix goes through weight(): assign, to_matrix, fill. stored_as<bfloat16_storage>() converts. Initial values:
/// normal with deviation 1/sqrt(in), or those that it is told.
///
/// Kernels ask for no more than a PanelledMap, which may be a view: shared by experts, a part of another map, memory of
/// a file. linear_map_view is one; a view of panels first .. of a map, or of the first inputs only, is a smaller map.
/// Where the storage is chosen at run time (kernel/mixed_map.hpp), a map says which PanelledMap it is when it is
/// visited.
#pragma once

#include <sluice/core/parameter.hpp>
#include <sluice/kernel/encoded_matrix.hpp>
#include <sluice/kernel/storage.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

/// What the products of a map read; a reference to one is one too.
template <typename M>
concept PanelledMap = WeightStorage<typename std::remove_cvref_t<M>::storage> &&
    requires(const std::remove_cvref_t<M>& map) {
  { map.inputs() } -> std::convertible_to<index_t>;
  { map.outputs() } -> std::convertible_to<index_t>;
  { map.panels() } -> std::convertible_to<index_t>;
  { map.panel(index_t()) } -> std::same_as<const std::byte*>;
  { map.format() } -> std::convertible_to<typename std::remove_cvref_t<M>::storage>;
};

namespace detail {

template <WeightStorage... Storages>
struct storage_list {};
/// Whether there is something to choose.
template <typename List>
inline constexpr bool chooses = true;
template <typename Storage>
inline constexpr bool chooses<storage_list<Storage>> = false;

/// The storages that a map may be of.
template <typename Map>
struct storages_of_map {
  using type = typename Map::storages;
};
template <PanelledMap Map>
struct storages_of_map<Map> {
  using type = storage_list<typename Map::storage>;
};
template <typename Map>
using storages_of = typename storages_of_map<std::remove_cvref_t<Map>>::type;

template <typename S>
inline constexpr bool is_storage_choice = false;

/// Initial values of a map that says nothing else than perhaps a deviation. Throws std::invalid_argument if that is
/// below 0.
inline initial_values initial_of_map(index_t inputs, double deviation = 0) {
  if (!is_at_least(deviation, 0)) throw_invalid("weights cannot begin with a deviation of ", deviation);
  if (deviation > 0) return initial_values::normal(deviation);
  return initial_values::normal(inputs > 0 ? 1 / std::sqrt(static_cast<double>(inputs)) : 0);
}

}  // namespace detail

/// A PanelledMap, or a map that shows one when it is visited.
template <typename M>
concept LinearMap = PanelledMap<M> || requires(const std::remove_cvref_t<M>& map) {
  typename std::remove_cvref_t<M>::storages;
  { map.inputs() } -> std::convertible_to<index_t>;
  { map.outputs() } -> std::convertible_to<index_t>;
  { map.panels() } -> std::convertible_to<index_t>;
  map.visit([](const auto&) {});
};

/// What a linear map is told to keep its weights in: a storage, or one of several (kernel/mixed_map.hpp).
template <typename S>
concept MapStorage = WeightStorage<S> || detail::is_storage_choice<S>;

/// static_assert(explain_storage<my_storage>()): the first error says what is asked for.
template <typename S>
consteval bool explain_storage() {
  static_assert(MapStorage<S>,
                "sluice: what weights are stored as is a storage, bfloat16_storage or int8_blocks say, and no type of "
                "number: kernel/storage.hpp says what one of your own needs");
  return MapStorage<S>;
}

/// f(map) for the PanelledMap that it is: the one place where a storage is decided.
template <LinearMap Map, typename F>
decltype(auto) visit_map(Map&& map, F&& f) {
  if constexpr (PanelledMap<Map>)
    return f(map);
  else
    return map.visit(f);
}

/// Panels that belong to somebody else. The last panel holds outputs that are not asked for, or zeros.
template <WeightStorage Storage>
struct linear_map_view {
  using storage = Storage;

  const std::byte* first_panel = nullptr;
  index_t panel_bytes = 0;  ///< from one panel to the next
  index_t out = 0;
  index_t in = 0;
  SLUICE_NO_UNIQUE_ADDRESS Storage stored{};

  index_t inputs() const noexcept { return in; }
  index_t outputs() const noexcept { return out; }
  index_t panels() const noexcept { return (out + lanes - 1) / lanes; }
  const std::byte* panel(index_t p) const noexcept { return first_panel + p * panel_bytes; }
  const Storage& format() const noexcept { return stored; }

  /// The first inputs of the outputs from panel `first` on. Throws std::invalid_argument if the map has not as many.
  linear_map_view part(index_t first, index_t outputs, index_t inputs) const {
    if (first < 0 || outputs < 0 || inputs < 0 || first * lanes + outputs > out || inputs > in)
      throw_invalid("a map [", out, ", ", in, "] has no part [", outputs, ", ", inputs, "] from output ",
                    first * lanes);
    return {panel(first), panel_bytes, outputs, inputs, stored};
  }

private:
  static constexpr index_t lanes = kernel::simd_width<typename Storage::scalar>;
};

/// The same of weights that learn: their gradient lies as they do.
template <FloatOrDouble Scalar>
struct learned_map_view : linear_map_view<full_precision<Scalar>> {
  Scalar* first_gradient = nullptr;  ///< null: there is none

  Scalar* gradient_panel(index_t p) const noexcept {
    constexpr auto number = static_cast<index_t>(sizeof(Scalar));
    return first_gradient == nullptr ? nullptr : first_gradient + p * (this->panel_bytes / number);
  }
};

template <MapStorage Storage>
class linear_map;

template <WeightStorage Storage>
class linear_map<Storage> {
public:
  using storage = Storage;
  using scalar = typename Storage::scalar;
  using weight_type = typename detail::weight_of<Storage>::type;

  linear_map() = default;
  linear_map(index_t outputs, index_t inputs, Storage format = {})
      : linear_map(outputs, inputs, detail::initial_of_map(inputs), format) {}
  linear_map(index_t outputs, index_t inputs, initial_values initial, Storage format = {})
      : weight_(detail::weight_of<Storage>::make(outputs, inputs, initial, format)), format_(format) {}

  index_t inputs() const noexcept { return weight_.cols(); }
  index_t outputs() const noexcept { return weight_.rows(); }

  weight_type& weight() noexcept { return weight_; }
  const weight_type& weight() const noexcept { return weight_; }

  const Storage& format() const noexcept { return format_; }
  index_t panels() const noexcept { return (outputs() + lanes - 1) / lanes; }
  const std::byte* panel(index_t p) const noexcept {
    const auto* const panels = reinterpret_cast<const std::byte*>(weight_.data());
    return panels == nullptr ? nullptr : panels + p * detail::panel_bytes<Storage>(inputs());
  }
  linear_map_view<Storage> view() const noexcept {
    return {panel(0), detail::panel_bytes<Storage>(inputs()), outputs(), inputs(), format_};
  }

  /// Panel p of the gradient; null if there is none, as of frozen weights.
  scalar* gradient_panel(index_t p) noexcept {
    if constexpr (detail::is_trainable_storage<Storage>) {
      if (!weight_.has_gradient()) return nullptr;
      return weight_.gradient().data() + p * weight_.layout().panel_size();
    } else {
      return nullptr;
    }
  }

  /// The same map with its weights rounded to another storage. Throws std::invalid_argument if nobody has set them.
  template <MapStorage Other>
  linear_map<Other> stored_as(const Other& format = {}) const {
    check_initialized(weight_, "weight");
    linear_map<Other> other(outputs(), inputs(), format);
    visit_map(other, [&](auto& map) { detail::reencode(*this, map); });
    return other;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("", self.weight_);
  }

private:
  static constexpr index_t lanes = kernel::simd_width<scalar>;

  weight_type weight_;
  SLUICE_NO_UNIQUE_ADDRESS Storage format_{};
};

static_assert(PanelledMap<linear_map<full_precision<float>>> && PanelledMap<linear_map_view<bfloat16_storage>>);

}  // namespace sluice::inline SLUICE_ISA
