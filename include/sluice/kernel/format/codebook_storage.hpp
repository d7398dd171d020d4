/// Weights as entries of codebooks: a storage for vector codes (kernel/format/vector_codes.hpp) with vectors of 2, 4 or
/// 8 weights along the inputs or the outputs, read only, activations and arithmetic in float.
///
///   codebook_storage<8, 16, vector_direction::along_inputs>               AQLM 1x16 and 2x8, PV-Tuning: 2 bits a weight
///   codebook_storage<8, 12, vector_direction::along_outputs, no_scale>    VPTQ with 4096 entries: 1.5 bits
///
/// A vector's element has Bits bits: the indices into up to four codebooks, the first in the lowest bits. A block of a
/// panel is the elements of Inputs inputs in the order in which they are decoded, one after the other in a stream of
/// bits, low ones first; then which codebooks are meant; then a scale a lane. Codebooks are state of the object, which
/// all copies of it share, as floats: small ones stay in the first cache, and those of 2^16 entries do not.
///
/// packed_map(codes) packs a linear map without changing a number; what a storage cannot hold is refused: scales that
/// are no Scale, groups of inputs that blocks cross, regions of outputs that panels cross. encode() searches, with the
/// largest number of a lane's block as large as the largest entry and then the nearest entry, codebook by codebook; NaN
/// or infinity make the scale NaN, and with no_scale they take the first entry. Whatever the bytes of a panel, decoding
/// stays within the codebooks. Where vectors along outputs are longer than a panel is wide, the panels that they cross
/// have an element each.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/kernel/format/decoded_runs.hpp>
#include <sluice/kernel/format/element_codebooks.hpp>
#include <sluice/kernel/linear_map.hpp>
#include <sluice/kernel/widen.hpp>

#include <bit>
#include <limits>
#include <memory>
#include <utility>

namespace sluice::inline SLUICE_ISA {

enum class vector_direction { along_inputs, along_outputs };

/// Weights are entries as they are.
struct no_scale {};

template <index_t Vector, int Bits, vector_direction Direction, typename Scale = float16, index_t Inputs = 128>
struct codebook_storage : decoded_runs<codebook_storage<Vector, Bits, Direction, Scale, Inputs>> {
  using base = decoded_runs<codebook_storage>;
  using base::lanes, base::run;
  static_assert(
      (Vector == 2 || Vector == 4 || Vector == 8) && Bits >= 1 && Bits <= 32 && Inputs % run == 0,
      "sluice: a codebook storage has vectors of 2, 4 or 8 weights, elements of 1 to 32 bits and blocks of whole "
      "runs of 32 inputs");
  static constexpr bool has_scale = !std::same_as<Scale, no_scale>;
  static constexpr bool is_along_inputs = Direction == vector_direction::along_inputs;
  static constexpr index_t width =
      is_along_inputs ? Vector : (std::min)(Vector, lanes);  ///< weights of an element here
  static constexpr index_t block = Inputs;
  static constexpr index_t run_elements = run * lanes / width;
  static constexpr index_t stream_bytes = Inputs / run * run_elements * Bits / 8;
  static constexpr index_t block_bytes = stream_bytes + 8 + (has_scale ? lanes * index_t(sizeof(Scale)) : 0);
  /// Without the codebooks.
  static constexpr double bits_a_weight = 8.0 * double(block_bytes) / double(block * lanes);

  codebook_storage() = default;
  /// Throws std::invalid_argument unless the codes are of this kind.
  explicit codebook_storage(const vector_codes& codes) {
    codes.validate();
    if (codes.tile_outputs != (is_along_inputs ? 1 : Vector) || codes.tile_inputs != (is_along_inputs ? Vector : 1))
      throw_invalid("codes of tiles [", codes.tile_outputs, ", ", codes.tile_inputs, "] do not go into vectors of ",
                    Vector, is_along_inputs ? " inputs" : " outputs");
    if (!has_scale && codes.scales.size() != 0) throw_invalid("codes have scales that the storage has no room for");
    if (codes.scale_inputs % Inputs != 0 || codes.region_inputs % Inputs != 0 || codes.region_outputs % lanes != 0)
      throw_invalid("blocks of ", Inputs, " inputs of ", lanes, " outputs cross borders of scales for ",
                    codes.scale_inputs, " inputs or of codebooks for [", codes.region_outputs, ", ",
                    codes.region_inputs, "]");
    auto made = std::make_shared<const detail::element_codebooks>(codes);
    if (made->element_bits() > Bits)
      throw_invalid("indices of ", made->element_bits(), " bits do not go into elements of ", Bits);
    codebooks_ = std::move(made);
  }

  /// What copies share, in bytes.
  index_t codebook_bytes() const noexcept {
    return codebooks_ ? static_cast<index_t>(codebooks_->entries.size() * sizeof(float)) : 0;
  }

  void decode_run(const std::byte* from, index_t r, float* numbers) const noexcept {
    if (!codebooks_) {
      std::fill_n(numbers, run * lanes, 0.0F);
      return;
    }
    std::array<std::uint32_t, 2> head;
    std::memcpy(head.data(), from + stream_bytes, sizeof head);
    const detail::element_codebooks& books = *codebooks_;
    const index_t part = is_along_inputs ? 0 : index_t{head[1]} & (Vector - width);
    switch (books.stages) {
      case 1:
        decode_elements(from, r, detail::entries_of_element<1, Vector>(books, head[0], part), numbers);
        break;
      case 2:
        decode_elements(from, r, detail::entries_of_element<2, Vector>(books, head[0], part), numbers);
        break;
      default:
        decode_elements(
            from, r, detail::entries_of_element<detail::element_codebooks::most_stages, Vector>(books, head[0], part),
            numbers);
    }
    if constexpr (has_scale) {
      const auto scale = kernel::load_widened(reinterpret_cast<const Scale*>(from + stream_bytes + 8));
      for (index_t i = 0; i < run * lanes; i += lanes)
        kernel::store<float>(numbers + i, scale * kernel::load(numbers + i));
    }
  }

  /// Panel p of codes that the storage was made of. Throws std::invalid_argument if a scale is no Scale.
  void pack(const vector_codes& codes, index_t p, std::byte* panel) const {
    for (index_t first = 0; first < codes.inputs; first += block, panel += block_bytes) {
      std::fill_n(panel, block_bytes, std::byte{0});
      const index_t a = p * lanes / codes.tile_outputs, b = first / codes.tile_inputs;
      set_head(panel, static_cast<std::uint32_t>(codes.region(a, b)),
               static_cast<std::uint32_t>(p * lanes % codes.tile_outputs));
      for (index_t l = 0; l < lanes && p * lanes + l < codes.outputs; ++l)
        if constexpr (has_scale) set_scale(panel, l, codes.scale(p * lanes + l, first));
      for (index_t e = 0; e < block / run * run_elements; ++e) {
        const auto [lane, input] = place(e);
        const index_t row = (p * lanes + lane) / codes.tile_outputs, col = (first + input) / codes.tile_inputs;
        std::uint64_t element = 0;
        int from = 0;
        for (index_t m = 0; m < codes.stages() && row < codes.tile_rows() && col < codes.tile_cols(); ++m) {
          element |= std::uint64_t{codes.indices[as_size(m)](row, col)} << from;
          from += codebooks_->bits[as_size(m)];
        }
        set_element(panel, e, element);
      }
    }
  }

  void encode(const float* numbers, index_t first, index_t last, std::byte* panel) const noexcept {
    for (index_t i = first; i < last; i += block, numbers += block * lanes) {
      std::byte* const to = panel + i / block * block_bytes;
      std::fill_n(to, block_bytes, std::byte{0});
      if (codebooks_) encode_block(numbers, to);
    }
  }

private:
  /// Lane and input of the first weight of element e of a block.
  static std::pair<index_t, index_t> place(index_t e) noexcept {
    if constexpr (is_along_inputs)
      return {e % lanes, e / lanes * Vector};
    else
      return {e % (lanes / width) * width, e / (lanes / width)};
  }

  static std::uint64_t element(const std::byte* stream, index_t e) noexcept {
    if constexpr (Bits == 8) {
      return std::to_integer<std::uint64_t>(stream[e]);
    } else if constexpr (Bits == 16) {
      std::uint16_t bits;
      std::memcpy(&bits, stream + 2 * e, sizeof bits);
      return bits;
    } else {
      const std::size_t from = as_size(e) * Bits;
      std::uint64_t bits;  // what follows the stream has eight bytes
      std::memcpy(&bits, stream + from / 8, sizeof bits);
      return bits >> (from % 8) & ((std::uint64_t{1} << Bits) - 1);
    }
  }
  static void set_element(std::byte* stream, index_t e, std::uint64_t value) noexcept {
    std::uint64_t bits;
    std::memcpy(&bits, stream + e * Bits / 8, sizeof bits);
    bits |= value << (e * Bits % 8);
    std::memcpy(stream + e * Bits / 8, &bits, sizeof bits);
  }
  static void set_head(std::byte* to, std::uint32_t region, std::uint32_t part) noexcept {
    const std::array<std::uint32_t, 2> head{region, part};
    std::memcpy(to + stream_bytes, head.data(), sizeof head);
  }
  static void set_scale(std::byte* to, index_t lane, float scale) {
    Scale rounded;
    if constexpr (std::same_as<Scale, float>) {
      rounded = scale;
    } else {
      rounded = round_to<Scale>(scale);
      if (to_float(rounded) != scale && !is_nan(scale))
        throw_invalid("a scale of ", scale, " is rounded by the storage");
    }
    std::memcpy(to + stream_bytes + 8 + lane * index_t(sizeof rounded), &rounded, sizeof rounded);
  }

  template <typename Entries>
  static void decode_elements(const std::byte* stream, index_t r, const Entries& entries, float* numbers) noexcept {
    index_t e = r * run_elements;
    if constexpr (!is_along_inputs) {
      for (index_t i = 0; i < run * lanes; i += width) entries.template sum<width>(element(stream, e++), numbers + i);
    } else {
      // A row a lane, which becomes a column of the panel.
      constexpr index_t chunk = (std::max)(lanes, Vector);
      alignas(64) float rows[as_size(lanes)][as_size(chunk)];
      for (index_t c = 0; c < run; c += chunk) {
        for (index_t i = 0; i < chunk; i += Vector)
          for (index_t l = 0; l < lanes; ++l) entries.template sum<width>(element(stream, e++), rows[l] + i);
        for (index_t i = 0; i < chunk; i += lanes, numbers += lanes * lanes) {
          kernel::simd<float> columns[as_size(lanes)];
          SLUICE_UNROLL for (index_t l = 0; l < lanes; ++l) columns[l] = kernel::load(rows[l] + i);
          kernel::transpose<float>(columns);
          SLUICE_UNROLL for (index_t l = 0; l < lanes; ++l) kernel::store<float>(numbers + l * lanes, columns[l]);
        }
      }
    }
  }

  void encode_block(const float* numbers, std::byte* to) const noexcept {
    std::array<float, as_size(lanes)> inverse;
    inverse.fill(1);
    if constexpr (has_scale) {
      for (index_t l = 0; l < lanes; ++l) {
        std::int32_t most = 0;  // bits of absolute values are ordered as they are, NaN last
        for (index_t i = 0; i < block; ++i)
          most = (std::max)(most, detail::bits_of(numbers[i * lanes + l]) & 0x7FFFFFFF);
        float scale = std::bit_cast<float>(most) / codebooks_->largest;
        if constexpr (!std::same_as<Scale, float>) scale = to_float(round_to<Scale>(scale));
        const bool is_number = most < detail::infinity_bits<float> && codebooks_->largest > 0;
        if (!is_number) scale = std::bit_cast<float>(0x7FC00000);
        set_scale(to, l, scale);
        inverse[as_size(l)] = is_number && scale > 0 ? 1 / scale : 0;
      }
    }
    for (index_t e = 0; e < block / run * run_elements; ++e) {
      const auto [lane, input] = place(e);
      std::array<float, as_size(width)> x;
      for (index_t j = 0; j < width; ++j) {
        const index_t l = is_along_inputs ? lane : lane + j, i = is_along_inputs ? input + j : input;
        x[as_size(j)] = numbers[i * lanes + l] * inverse[as_size(l)];
      }
      set_element(to, e, codebooks_->template nearest<Vector>(x));
    }
  }

  std::shared_ptr<const detail::element_codebooks> codebooks_;
};

/// A linear map whose weights are those of the codes. Throws std::invalid_argument if the storage cannot hold them.
template <typename Storage>
linear_map<Storage> packed_map(const vector_codes& codes) {
  const Storage format(codes);
  linear_map<Storage> map(codes.outputs, codes.inputs, format);
  for (index_t p = 0; p < map.panels(); ++p)
    format.pack(codes, p, map.weight().data() + p * detail::panel_bytes<Storage>(codes.inputs));
  return map;
}

static_assert(WeightStorage<codebook_storage<8, 16, vector_direction::along_inputs>> &&
              WeightStorage<codebook_storage<8, 12, vector_direction::along_outputs, no_scale>>);

}  // namespace sluice::inline SLUICE_ISA
