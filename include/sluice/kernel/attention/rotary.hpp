/// Rotary positions: pairs of a head's numbers are turned by angles that grow with the token's position.
///
///   angle_i(p) = p base^(-2i / width)     i < width / 2, width numbers of the head are turned, the rest stay as they are
///   (x_i, x_(i + width/2)) becomes (x_i cos - x_(i + width/2) sin, x_(i + width/2) cos + x_i sin)      pairs are halves apart
///
/// as in Llama and JetMoE; q . k then depends on the distance of their positions. The adjoint turns back. Angles are
/// computed in double, sines and cosines kept for all positions so far; what becomes of a row depends on it and its
/// position. Su et al. 2021, "RoFormer", arXiv:2104.09864.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/attention/heads.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA::kernel {

struct rotary_options {
  index_t width = 0;  ///< numbers of a head that are turned, from its first on; 0: none
  double base = 10000;

  friend bool operator==(const rotary_options&, const rotary_options&) = default;
};

/// Throws std::invalid_argument unless width is even and from 0 to key_width, and base > 0.
inline void check_rotary(const rotary_options& o, index_t key_width) {
  if (o.width < 0 || o.width % 2 != 0 || o.width > key_width || !is_above(o.base, 0.0) || !is_finite(o.base))
    throw_invalid("rotary positions need an even width from 0 to that of a head, ", key_width, ", and base > 0, not ",
                  o.width, " and ", o.base);
}

enum class turn { forward, back };

/// Cosines and sines of the positions up to the largest one asked for: what workspaces and tapes keep.
template <typename Scalar>
class rotary_table {
public:
  /// Makes sure of the positions 0 .. positions - 1.
  void prepare(const rotary_options& o, index_t positions) {
    if (o == options_ && positions <= rows_.rows()) return;
    positions =
        std::max<index_t>(positions, o == options_ ? 2 * rows_.rows() : 0);  // seldom, where tokens come one by one
    rows_.resize(positions, o.width);
    options_ = o;
    const index_t half = o.width / 2;
    for (index_t p = 0; p < positions; ++p)
      for (index_t i = 0; i < half; ++i) {
        const double angle =
            static_cast<double>(p) * std::pow(o.base, -2 * static_cast<double>(i) / static_cast<double>(o.width));
        rows_(p, i) = static_cast<Scalar>(std::cos(angle));
        rows_(p, half + i) = static_cast<Scalar>(std::sin(angle));
      }
  }

  /// The heads of one row, in place.
  void rotate(Scalar* first_head, index_t heads, index_t head_stride, index_t position, turn direction) const noexcept {
    constexpr index_t vector = simd_width<Scalar>;
    const index_t half = options_.width / 2;
    const Scalar *cosines = rows_.row(position), *sines = cosines + half;
    const simd<Scalar> sign(direction == turn::forward ? Scalar(1) : Scalar(-1));
    for (index_t h = 0; h < heads; ++h) {
      Scalar *low = first_head + h * head_stride, *high = low + half;
      for (index_t i = 0; i < half; i += vector) {
        const index_t count = (std::min)(vector, half - i);
        const simd<Scalar> c = part(cosines + i, count), s = sign * part(sines + i, count);
        const simd<Scalar> a = part(low + i, count), b = part(high + i, count);
        put(low + i, multiply_add<Scalar>(a, c, -(b * s)), count);
        put(high + i, multiply_add<Scalar>(b, c, a * s), count);
      }
    }
  }

  /// `count` rows from `row` on, at consecutive positions.
  void rotate(const head_rows<Scalar>& x, index_t heads, index_t row, index_t count, index_t first_position,
              turn direction, const executor_ref& executor) const {
    executor.parallel_each(count, heads * options_.width, [&](index_t i) {
      rotate(x.at(row + i, 0), heads, x.head_stride, first_position + i, direction);
    });
  }

private:
  static simd<Scalar> part(const Scalar* from, index_t count) noexcept {
    return count == simd_width<Scalar> ? load(from) : load_part(from, count, Scalar(0));
  }
  static void put(Scalar* to, const simd<Scalar>& v, index_t count) noexcept {
    count == simd_width<Scalar> ? store<Scalar>(to, v) : store_part<Scalar>(to, v, count);
  }

  rotary_options options_;
  matrix_buffer<Scalar> rows_;  ///< [positions, width], cosines first
};

}  // namespace sluice::inline SLUICE_ISA::kernel
