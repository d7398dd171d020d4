/// Weight storage: how the weights of a linear map are kept in panels, and how kernels come by them.
///
///   full_precision<float | double>       as they are calculated with; can be trained
///   half_precision<bfloat16 | float16>   two bytes a weight, widened in registers, arithmetic in float; read only
///   codes of a few bits with scales      kernel/block_storage.hpp, kernel/format/; read only
///
/// A panel holds the weights to L outputs, one output a lane. A storage is an object, which linear maps hold: empty, or
/// with a codebook, say. It has
///   scalar       what tokens and outputs are made of
///   block        inputs that share something, a scale perhaps: panels are encoded in whole blocks
///   bytes(inputs)                              what so many inputs, whole blocks of them, take in a panel
///   encode(numbers, first, last, panel)        [last - first][L] weights of the inputs first .. last, whole blocks of them
///   decode(panel, first, last, numbers)        and back, of any inputs
///   bits_a_weight                              for reports
/// That is all: kernels decode a part of some panels at a time, which stays in the first cache, and run tiles of floats
/// over it. Whose products are not those of floats names other tiles and fills panels of theirs instead:
///   tiles, expand(panel, first, last, to)      a TileStorage; to: its panel of the inputs first .. last
///   low_tiles                                  optional: a TileStorage for few rows, which reads panels as they are
/// Without `expand`, tiles of any height read panels as they are.
/// Inputs of a part begin at a multiple of 32 and end at one, or at the last input of the map.
///
/// A TileStorage is what tiles read step by step: element storages here, bytes for dot products
/// (kernel/byte_panels.hpp).
///   group, block                               inputs of a step, steps of a block
///   activation   `group` inputs of a row, packed: what a step broadcasts to all lanes
///   bytes(steps)
///   at(address) -> cursor                      address;  next() -> the weights of a step in registers, and on to the following
///   multiply_add(activation, weights, sum) -> sum     with as many lanes as simd<scalar>
///   pack(x, f) -> activation                   from `group` adjacent inputs times f
/// and instead of pack, where sums are not numbers of type scalar before a block is complete (integers, say),
///   partial, factor                            such sums; what a row's packed block has to be multiplied by
///   pack_block(x, f, units) -> factor          from a block's inputs times f
///   cursor.enter();  start(factor) -> partial  before a block
///   cursor.leave() -> terms                    after it: what is the same for all rows;
///   finish(partial, factor, terms, total) -> total     and for each of them
/// It may also have
///   packing                                    the TileStorage whose packed rows it reads, if not its own
///   units                                      steps that next() is the weights of, an array of as many
/// Everything else is shared: tiles, blocking, prefetch, gather, epilogues, scheduling.
#pragma once

#include <sluice/core/half.hpp>
#include <sluice/core/matrix_layout.hpp>
#include <sluice/kernel/simd.hpp>
#include <sluice/kernel/widen.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct full_precision;

namespace detail {

template <typename S>
struct tiles_of_storage {
  using type = full_precision<typename S::scalar>;
};
template <typename S>
  requires requires { typename S::tiles; }
struct tiles_of_storage<S> {
  using type = typename S::tiles;
};
template <typename S>
  requires requires { typename S::cursor; }
struct tiles_of_storage<S> {
  using type = S;
};
/// What the tiles of a storage read: itself, or what its panels are expanded to.
template <typename S>
using tiles_of = typename tiles_of_storage<S>::type;

/// Whether panels are something else than what tiles read: those of numbers are decoded, others have `expand`.
template <typename S>
inline constexpr bool is_expanded = !std::same_as<tiles_of<S>, S> &&
    (!requires { typename S::tiles; } ||
     requires(const S& storage, std::byte* to) { storage.expand(to, index_t(), index_t(), to); });

/// Inputs of a block of a storage.
template <typename S>
constexpr index_t block_inputs() {
  if constexpr (std::same_as<tiles_of<S>, S>)
    return S::group * S::block;
  else
    return S::block;
}

template <typename Tiles>
struct packing_of_tiles {
  using type = Tiles;
};
template <typename Tiles>
  requires requires { typename Tiles::packing; }
struct packing_of_tiles<Tiles> {
  using type = typename Tiles::packing;
};
/// The tiles whose rows those of a storage read.
template <typename S>
using packing_of = typename packing_of_tiles<tiles_of<S>>::type;

template <typename S>
struct low_tiles_of_storage {
  using type = tiles_of<S>;
};
template <typename S>
  requires requires { typename S::low_tiles; }
struct low_tiles_of_storage<S> {
  using type = typename S::low_tiles;
  static_assert(std::same_as<packing_of<S>, typename packing_of_tiles<type>::type>,
                "sluice: rows of a storage are packed in one way, also for its low tiles");
};
/// The tiles of a storage for few rows.
template <typename S>
using low_tiles_of = typename low_tiles_of_storage<S>::type;

template <typename Tiles>
inline constexpr index_t units_of = 1;
template <typename Tiles>
  requires requires { Tiles::units; }
inline constexpr index_t units_of<Tiles> = Tiles::units;

/// Of what next() says, the weights of a step.
template <typename Weights>
const Weights& weights_of_step(const Weights& weights, index_t) noexcept {
  return weights;
}
template <typename Weights, std::size_t Units>
const Weights& weights_of_step(const std::array<Weights, Units>& weights, index_t unit) noexcept {
  return weights[as_size(unit)];
}

}  // namespace detail

/// Whether sums are partial until a block of steps is complete.
template <typename S>
concept SumsInBlocks = requires { typename detail::tiles_of<S>::partial; };

namespace detail {

struct no_factor {};

template <typename S>
struct sums_of_storage {
  using partial = kernel::simd<typename S::scalar>;
  using factor = no_factor;
};
template <SumsInBlocks S>
struct sums_of_storage<S> {
  using partial = typename S::partial;
  using factor = typename S::factor;
};
/// What steps add to, what a row has for every block, and what it is packed as.
template <typename S>
using partial_of = typename sums_of_storage<tiles_of<S>>::partial;
template <typename S>
using factor_of = typename sums_of_storage<tiles_of<S>>::factor;
template <typename S>
using activation_of = typename tiles_of<S>::activation;

template <typename S>
concept PacksInputs = requires(const S& storage, const typename S::scalar* x, typename S::activation* units) {
  { storage.pack(x, *x) } -> std::same_as<typename S::activation>;
} || requires(const S& storage, const typename S::scalar* x, typename S::activation* units, typename S::cursor cursor,
              typename S::partial sum, typename S::factor factor, kernel::simd<typename S::scalar> total) {
  { storage.pack_block(x, *x, units) } -> std::same_as<typename S::factor>;
  cursor.enter();
  { S::start(factor) } -> std::same_as<typename S::partial>;
  { cursor.finish(sum, factor, cursor.leave(), total) } -> std::same_as<kernel::simd<typename S::scalar>>;
};

}  // namespace detail

template <typename S>
concept TileStorage = std::floating_point<typename S::scalar> && std::default_initializable<typename S::cursor> &&
    detail::PacksInputs<S> &&
    requires(const S& storage, typename S::cursor cursor, typename S::activation a, detail::partial_of<S> sum,
             const std::byte* panel) {
  { S::group } -> std::convertible_to<index_t>;
  { S::block } -> std::convertible_to<index_t>;
  { S::bytes(index_t()) } -> std::same_as<index_t>;
  { storage.at(panel) } -> std::same_as<typename S::cursor>;
  { S::multiply_add(a, detail::weights_of_step(cursor.next(), 0), sum) } -> std::same_as<detail::partial_of<S>>;
};

template <typename S>
concept WeightStorage = std::floating_point<typename S::scalar> && TileStorage<detail::tiles_of<S>> &&
    requires(const S& storage, std::byte* panel, typename S::scalar* numbers) {
  { S::block } -> std::convertible_to<index_t>;
  { S::bytes(index_t()) } -> std::same_as<index_t>;
  storage.encode(numbers, index_t(), index_t(), panel);
  storage.decode(panel, index_t(), index_t(), numbers);
};

/// What storages of one element a weight share: element l of step k of a panel belongs to lane l.
template <FloatOrDouble Scalar, typename Element>
struct element_storage {
  using scalar = Scalar;
  using element = Element;
  using activation = Scalar;
  using vector = kernel::simd<Scalar>;
  static constexpr index_t group = 1;
  static constexpr index_t block = 1;
  static constexpr index_t lanes = kernel::simd_width<Scalar>;
  static constexpr double bits_a_weight = 8.0 * sizeof(Element);

  struct cursor {
    const Element* address = nullptr;

    vector next() noexcept {
      const vector weights = kernel::load_widened(address);
      address += lanes;
      return weights;
    }
  };

  static constexpr index_t bytes(index_t steps) noexcept {
    return steps * lanes * static_cast<index_t>(sizeof(Element));
  }
  static cursor at(const std::byte* address) noexcept { return {reinterpret_cast<const Element*>(address)}; }
  static vector multiply_add(activation a, const vector& w, const vector& sum) noexcept {
    return kernel::multiply_add<Scalar>(vector(a), w, sum);
  }
  static activation pack(const Scalar* x, Scalar factor) noexcept { return *x * factor; }

  static void encode(const Scalar* numbers, index_t first, index_t last, std::byte* panel) noexcept {
    auto* const elements = reinterpret_cast<Element*>(panel) + first * lanes;
    for (index_t i = 0; i < (last - first) * lanes; ++i) elements[i] = to_element<Element>(numbers[i]);
  }
  static void decode(const std::byte* panel, index_t first, index_t last, Scalar* numbers) noexcept {
    cursor weights = at(panel + bytes(first));
    for (index_t i = first; i < last; ++i, numbers += lanes) kernel::store<Scalar>(numbers, weights.next());
  }
};

template <FloatOrDouble Scalar>
struct full_precision : element_storage<Scalar, Scalar> {};

template <typename Half>
struct half_precision : element_storage<float, Half> {};

using bfloat16_storage = half_precision<bfloat16>;
using float16_storage = half_precision<float16>;

namespace detail {

/// Whether the weights are the numbers that kernels calculate with, and may have gradients.
template <typename Storage>
inline constexpr bool is_trainable_storage = std::same_as<Storage, full_precision<typename Storage::scalar>>;

/// Whether a row is packed number by number, as it lies: such packed rows are of one kind, whatever the storage.
template <typename Storage>
inline constexpr bool packs_numbers = std::same_as<activation_of<Storage>, typename Storage::scalar> &&
    tiles_of<Storage>::group == 1 && !SumsInBlocks<Storage>;

/// A storage as its tiles see it.
template <typename Tiles, typename Storage>
decltype(auto) tiles_object(const Storage& storage) noexcept {
  if constexpr (std::same_as<Tiles, Storage>)
    return (storage);
  else
    return Tiles();
}

/// The inputs first .. last of a panel as the storage's tiles read them.
template <typename Storage>
void expand(const Storage& storage, const std::byte* panel, index_t first, index_t last, std::byte* to) {
  if constexpr (requires { storage.expand(panel, first, last, to); })
    storage.expand(panel, first, last, to);
  else
    storage.decode(panel, first, last, reinterpret_cast<typename Storage::scalar*>(to));
}

}  // namespace detail

static_assert(WeightStorage<full_precision<float>> && WeightStorage<full_precision<double>> &&
              WeightStorage<bfloat16_storage> && WeightStorage<float16_storage>);

}  // namespace sluice::inline SLUICE_ISA
