/// Weight storage: how the weights of a linear map are kept in panels, and how one step of a kernel uses them.
///
///   full_precision<float | double>       as they are calculated with; can be trained
///   half_precision<bfloat16 | float16>   two bytes a weight, widened in registers, arithmetic in float; read only
///   int8_blocks, int4_blocks             codes with a scale for 32 inputs (kernel/block_storage.hpp); read only
///
/// A panel holds the weights to L outputs, one output a lane; a step takes those of `group` consecutive inputs. A storage
/// is an object, which linear maps hold: empty, or with a codebook, say. It has
///   scalar       what tokens and outputs are made of
///   group        inputs of one step: 1, or 4 for dot-product instructions
///   block        steps that share something, a scale perhaps: panels are encoded, and cursors begin, at whole blocks
///   activation   `group` inputs of a row, packed: what a step broadcasts to all lanes
///   bytes(steps)                               what so many steps, whole blocks of them, take in a panel
///   encode(numbers, first, last, panel)        [last - first][L] weights of the inputs first .. last, whole blocks of them
///   decode(panel, first, last, numbers)        and back, of any inputs
///   at(address) -> cursor                      address;  next() -> the weights of a step in registers, and on to the following
///   multiply_add(activation, weights, sum) -> sum     with as many lanes as simd<scalar>
///   pack(x, f) -> activation                   from `group` adjacent inputs times f
/// and instead of pack, where sums are not numbers of type scalar before a block is complete (integers, say),
///   partial, factor                            such sums; what a row's packed block has to be multiplied by
///   pack_block(x, f, units) -> factor          from a block's inputs times f
///   cursor.enter();  start(factor) -> partial  before a block;  cursor.finish(partial, factor, total) -> total after it
/// Everything else is shared: tiles, blocking, prefetch, gather, epilogues, scheduling.
#pragma once

#include <sluice/core/half.hpp>
#include <sluice/core/matrix_layout.hpp>
#include <sluice/kernel/simd.hpp>
#include <sluice/kernel/widen.hpp>

#include <concepts>
#include <cstddef>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

/// Whether sums are partial until a block of steps is complete.
template <typename S>
concept SumsInBlocks = requires { typename S::partial; typename S::factor; };

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
/// What steps add to, and what a row has for every block.
template <typename S>
using partial_of = typename sums_of_storage<S>::partial;
template <typename S>
using factor_of = typename sums_of_storage<S>::factor;

template <typename S>
concept PacksInputs = requires(const S& storage, const typename S::scalar* x, typename S::activation* units) {
  { storage.pack(x, *x) } -> std::same_as<typename S::activation>;
} || requires(const S& storage, const typename S::scalar* x, typename S::activation* units, typename S::cursor cursor,
              typename S::partial sum, typename S::factor factor, kernel::simd<typename S::scalar> total) {
  { storage.pack_block(x, *x, units) } -> std::same_as<typename S::factor>;
  cursor.enter();
  { S::start(factor) } -> std::same_as<typename S::partial>;
  { cursor.finish(sum, factor, total) } -> std::same_as<kernel::simd<typename S::scalar>>;
};

}  // namespace detail

template <typename S>
concept WeightStorage = std::floating_point<typename S::scalar> && std::default_initializable<typename S::cursor> &&
    detail::PacksInputs<S> &&
    requires(const S& storage, typename S::cursor cursor, typename S::activation a, detail::partial_of<S> sum,
             std::byte* panel, typename S::scalar* numbers) {
  { S::group } -> std::convertible_to<index_t>;
  { S::block } -> std::convertible_to<index_t>;
  { S::bytes(index_t()) } -> std::same_as<index_t>;
  { storage.at(panel) } -> std::same_as<typename S::cursor>;
  { S::multiply_add(a, cursor.next(), sum) } -> std::same_as<detail::partial_of<S>>;
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

  struct cursor {
    const Element* address = nullptr;

    vector next() noexcept {
      const vector weights = kernel::load_widened(address);
      address += lanes;
      return weights;
    }
  };

  static constexpr index_t bytes(index_t steps) noexcept { return steps * lanes * static_cast<index_t>(sizeof(Element)); }
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
inline constexpr bool packs_numbers =
    std::same_as<typename Storage::activation, typename Storage::scalar> && Storage::group == 1 && !SumsInBlocks<Storage>;

}  // namespace detail

static_assert(WeightStorage<full_precision<float>> && WeightStorage<full_precision<double>> &&
              WeightStorage<bfloat16_storage> && WeightStorage<float16_storage>);

}  // namespace sluice::inline SLUICE_ISA
