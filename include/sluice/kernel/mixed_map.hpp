/// A linear map whose storage is chosen at run time from a list of types: experts of one layer, and matrices of one
/// expert, may differ.
///
///   using storage = mixed_storage<full_precision<float>, bfloat16_storage, int8_blocks, int4_blocks>;
///   const auto small = layer.stored_as<storage>([](index_t expert, int matrix) -> storage {
///     return expert == 0 || matrix == 2 ? storage(int8_blocks()) : storage(int4_blocks());
///   });
///
/// mixed_storage takes the place of a storage in ffn, gated_ffn and linear_expert; a value of it says which one, the
/// first of the list unless told. A map holds the linear_map of that storage and nothing else, and visit(f) calls
/// f(that map): once an expert and stage of a call, never in a loop over weights. Weights in full precision learn
/// unless they are frozen; through all others gradients pass. Parameters are visited as what the map holds:
/// initialisers, optimisers and files see those.
///
/// Assigning a linear_map of any storage of the list replaces what is held; its shape must be the same.
#pragma once

#include <sluice/kernel/linear_map.hpp>

#include <concepts>
#include <utility>
#include <variant>

namespace sluice::inline SLUICE_ISA {

template <WeightStorage First, WeightStorage... Rest>
  requires(std::same_as<typename First::scalar, typename Rest::scalar> && ...)
class mixed_storage {
public:
  using scalar = typename First::scalar;
  using storages = detail::storage_list<First, Rest...>;
  template <typename S>
  static constexpr bool holds = std::same_as<S, First> || (std::same_as<S, Rest> || ...);

  mixed_storage() = default;
  template <WeightStorage Storage>
    requires holds<Storage>
  mixed_storage(const Storage& format) : format_(format) {}

  /// Its place in the list.
  index_t number() const noexcept { return static_cast<index_t>(format_.index()); }
  template <typename F>
  decltype(auto) visit(F&& f) const {
    return std::visit(f, format_);
  }

private:
  std::variant<First, Rest...> format_;
};

namespace detail {

template <typename... Storages>
inline constexpr bool is_storage_choice<mixed_storage<Storages...>> = true;

}  // namespace detail

template <typename... Storages>
class linear_map<mixed_storage<Storages...>> {
public:
  using storage = mixed_storage<Storages...>;
  using storages = typename storage::storages;
  using scalar = typename storage::scalar;

  linear_map() = default;
  linear_map(index_t outputs, index_t inputs, const storage& format = {})
      : linear_map(outputs, inputs, detail::initial_of_map(inputs), format) {}
  linear_map(index_t outputs, index_t inputs, initial_values initial, const storage& format = {})
      : map_(format.visit([&](const auto& one) {
          return variant(linear_map<std::remove_cvref_t<decltype(one)>>(outputs, inputs, initial, one));
        })) {}
  template <WeightStorage Storage>
    requires(storage::template holds<Storage>)
  linear_map(linear_map<Storage> map) : map_(std::move(map)) {}

  /// Throws std::invalid_argument for a map of another shape.
  template <WeightStorage Storage>
    requires(storage::template holds<Storage>)
  linear_map& operator=(linear_map<Storage> map) {
    if (map.inputs() != inputs() || map.outputs() != outputs())
      throw_invalid("a map [", outputs(), ", ", inputs(), "] cannot become one [", map.outputs(), ", ", map.inputs(),
                    "]");
    map_ = std::move(map);
    return *this;
  }

  template <typename F>
  decltype(auto) visit(F&& f) {
    return std::visit(f, map_);
  }
  template <typename F>
  decltype(auto) visit(F&& f) const {
    return std::visit(f, map_);
  }
  /// The map if it is of this storage, or null.
  template <WeightStorage Storage>
  const linear_map<Storage>* get_if() const noexcept {
    return std::get_if<linear_map<Storage>>(&map_);
  }

  index_t inputs() const noexcept {
    return visit([](const auto& map) { return map.inputs(); });
  }
  index_t outputs() const noexcept {
    return visit([](const auto& map) { return map.outputs(); });
  }
  index_t panels() const noexcept {
    return visit([](const auto& map) { return map.panels(); });
  }
  storage format() const {
    return visit([](const auto& map) { return storage(map.format()); });
  }

  // ---- what weight() of other maps has -----------------------------------------------------------------------------

  linear_map& weight() noexcept { return *this; }
  const linear_map& weight() const noexcept { return *this; }
  matrix<scalar> to_matrix() const {
    return visit([](const auto& map) { return map.weight().to_matrix(); });
  }
  void assign(const detail::input_ref<scalar>& values) {
    visit([&](auto& map) { map.weight().assign(values); });
  }
  template <typename F>
  void fill(F&& f, const executor_ref& executor = {}) {
    visit([&](auto& map) { map.weight().fill(f, executor); });
  }

  scalar* gradient_panel(index_t p) noexcept {
    return visit([p](auto& map) { return map.gradient_panel(p); });
  }

  /// The same map with its weights rounded to another storage. Throws std::invalid_argument if nobody has set them.
  template <MapStorage Other>
  linear_map<Other> stored_as(const Other& format = {}) const {
    return visit([&](const auto& map) { return map.template stored_as<Other>(format); });
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    self.visit([&](auto& map) { std::remove_cvref_t<decltype(map)>::visit_parameters(map, visit); });
  }

private:
  using variant = std::variant<linear_map<Storages>...>;

  variant map_;
};

static_assert(MapStorage<mixed_storage<full_precision<float>, bfloat16_storage>> &&
              LinearMap<linear_map<mixed_storage<full_precision<float>, bfloat16_storage>>> &&
              !PanelledMap<linear_map<mixed_storage<full_precision<float>, bfloat16_storage>>>);

}  // namespace sluice::inline SLUICE_ISA
