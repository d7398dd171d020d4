/// Integer, matrix and view types that every part of sluice shares.
///
/// Matrices are row-major and rows are tokens: x is [T,D]. Axis letters: T tokens, D model width, H hidden width of an
/// expert, E experts, K experts per token, C capacity of an expert.
#pragma once

#include <sluice/core/isa.hpp>

// GCC takes the "any value will do" of its own AVX-512 header for a mistake. What is off while the functions that use
// it are read stays off wherever they end up.
#if defined(__GNUC__) && !defined(__clang__)
#define SLUICE_BEGIN_VECTOR_LIBRARY                                                   \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wuninitialized\"") \
      _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#define SLUICE_END_VECTOR_LIBRARY _Pragma("GCC diagnostic pop")
#else
#define SLUICE_BEGIN_VECTOR_LIBRARY
#define SLUICE_END_VECTOR_LIBRARY
#endif

SLUICE_BEGIN_VECTOR_LIBRARY
#include <Eigen/Core>
SLUICE_END_VECTOR_LIBRARY

#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(_MSC_VER)
#define SLUICE_NO_UNIQUE_ADDRESS [[msvc::no_unique_address]]
#else
#define SLUICE_NO_UNIQUE_ADDRESS [[no_unique_address]]
#endif

static_assert(EIGEN_VERSION_AT_LEAST(3, 4, 0), "sluice: Eigen 3.4 or newer is needed");

namespace sluice::inline SLUICE_ISA {

/// Counts, sizes and positions. 64 bits: E·H·D passes 2^31 in published models.
using index_t = std::int64_t;

/// A count as the standard library wants it: bounds of arrays, indices of std::array.
constexpr std::size_t as_size(index_t count) noexcept { return static_cast<std::size_t>(count); }

/// Marks a count that is known only at run time.
inline constexpr index_t dynamic = -1;

template <typename Scalar>
using matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Rows to read. Rows may be apart (outer stride); elements of a row are adjacent. Any row-major Eigen object binds
/// without a copy. (type_identity: a function template takes its Scalar from other arguments, so that every kind of
/// matrix is accepted here.)
template <typename Scalar>
using tokens_in = const Eigen::Ref<const matrix<std::type_identity_t<Scalar>>, 0, Eigen::OuterStride<>>&;

/// Rows to write, by value: a view, never a copy of the numbers.
template <typename Scalar>
using tokens_out = Eigen::Ref<matrix<std::type_identity_t<Scalar>>, 0, Eigen::OuterStride<>>;

template <typename Scalar>
using matrix_map = Eigen::Map<matrix<Scalar>>;
template <typename Scalar>
using const_matrix_map = Eigen::Map<const matrix<Scalar>>;

/// A count that is either a compile-time constant (and then takes no space) or a run-time value.
template <index_t Count>
class extent {
public:
  static constexpr bool is_fixed = true;
  constexpr extent() = default;
  constexpr explicit extent(index_t) {}
  static constexpr index_t value() noexcept { return Count; }
};

template <>
class extent<dynamic> {
public:
  static constexpr bool is_fixed = false;
  constexpr extent() = default;
  constexpr explicit extent(index_t count) : count_(count) {}
  constexpr index_t value() const noexcept { return count_; }

private:
  index_t count_ = 0;
};

}  // namespace sluice::inline SLUICE_ISA
