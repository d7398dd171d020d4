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

namespace detail {

template <typename T>
consteval bool explain_scalar() {
  static_assert(
      std::is_same_v<T, float> || std::is_same_v<T, double>,
      "sluice: the scalar of routers, experts and layers is float or double; weights of 16 bits are a storage "
      "of experts, such as bfloat16_storage");
  return true;
}

}  // namespace detail

/// The scalar of class templates. Another type is an error there and then, with a sentence, and no overload or
/// specialisation is tried instead: where one should be, std::floating_point is the constraint.
template <typename T>
concept FloatOrDouble = detail::explain_scalar<T>();

template <typename Scalar>
using matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace detail {

template <typename Scalar>
using input_ref = Eigen::Ref<const matrix<Scalar>, 0, Eigen::OuterStride<>>;
template <typename Scalar>
using output_ref = Eigen::Ref<matrix<Scalar>, 0, Eigen::OuterStride<>>;

template <typename M>
inline constexpr bool has_memory = (M::Flags & Eigen::DirectAccessBit) != 0;
template <typename M>
inline constexpr bool is_writable = (M::Flags & Eigen::LvalueBit) != 0;
template <typename M>
inline constexpr bool owns_numbers = std::is_base_of_v<Eigen::PlainObjectBase<M>, M>;
template <typename M>
inline constexpr bool has_order = bool(M::IsRowMajor) || bool(M::IsVectorAtCompileTime);
template <typename M>
inline constexpr bool has_rows = has_order<M> && M::InnerStrideAtCompileTime == 1;

/// An expression has no memory to view and is evaluated into some; what has memory must not be copied in silence.
template <typename M, typename Scalar>
concept ReadableRows = std::is_same_v<typename M::Scalar, Scalar> && (has_rows<M> || !has_memory<M>);
template <typename M, typename Scalar>
concept WritableRows = std::is_same_v<typename M::Scalar, Scalar> && has_memory<M> && has_rows<M> && is_writable<M>;

template <typename M, typename Scalar>
consteval bool explain_rows() {
  constexpr bool same_scalar = std::is_same_v<typename M::Scalar, Scalar>;
  constexpr bool holds_rows = !has_memory<M> || has_order<M>;
  static_assert(same_scalar,
                "sluice: this matrix has another scalar than what it is given to: a layer of float takes matrices of "
                "float");
  static_assert(!same_scalar || holds_rows,
                "sluice: this matrix is column-major, or transposed; tokens are rows: use sluice::matrix<scalar>, or "
                "Eigen::RowMajor in the matrix's own type");
  static_assert(!same_scalar || !holds_rows || ReadableRows<M, Scalar>,
                "sluice: the numbers of a row of this matrix are not adjacent; only whole rows may be apart");
  return true;
}

template <typename M, typename Scalar>
consteval bool explain_output() {
  constexpr bool is_place = has_memory<M> && is_writable<M>;
  static_assert(explain_rows<M, Scalar>());
  static_assert(!ReadableRows<M, Scalar> || is_place,
                "sluice: this output cannot be written to: it is const, or an expression without memory of its own");
  static_assert(!ReadableRows<M, Scalar> || !is_place || !owns_numbers<M>,
                "sluice: this output is const, or a temporary matrix that is gone when the call returns: give a matrix "
                "of yours");
  return true;
}

/// How calls see their inputs: a view of rows in the caller's memory. What cannot be one is refused by a sentence.
template <typename Scalar>
class input_view : public input_ref<Scalar> {
public:
  template <typename M>
    requires ReadableRows<M, Scalar>
  input_view(const Eigen::DenseBase<M>& m) : input_ref<Scalar>(m.derived()) {}
  template <typename M>
    requires(!ReadableRows<M, Scalar>)
  input_view(const Eigen::DenseBase<M>&) : input_ref<Scalar>(matrix<Scalar>()) {
    static_assert(explain_rows<M, Scalar>());
  }
};

/// How calls see their outputs.
template <typename Scalar>
class output_view : public output_ref<Scalar> {
  using base = output_ref<Scalar>;

public:
  output_view(const output_view&) = default;
  template <typename M>
    requires WritableRows<M, Scalar>
  output_view(Eigen::DenseBase<M>& m) : base(m.derived()) {}
  template <typename M>
    requires(WritableRows<M, Scalar> && !owns_numbers<M>)
  output_view(const Eigen::DenseBase<M>& m) : base(m.derived()) {}
  template <typename M>
    requires(!WritableRows<M, Scalar> || owns_numbers<M>)
  output_view(const Eigen::DenseBase<M>&) : base(Eigen::Map<matrix<Scalar>>(nullptr, 0, 0)) {
    static_assert(explain_output<M, Scalar>());
  }

  using base::operator=;
  output_view& operator=(const output_view& other) {
    base::operator=(other);
    return *this;
  }
};

}  // namespace detail

/// Rows to read. Rows may be apart (outer stride); elements of a row are adjacent. Any row-major Eigen object binds
/// without a copy; column-major ones and other scalars do not compile. (type_identity: a function template takes its
/// Scalar from other arguments, so that every kind of matrix is accepted here.)
template <typename Scalar>
using tokens_in = const detail::input_view<std::type_identity_t<Scalar>>&;

/// Rows to write, by value: a view, never a copy of the numbers.
template <typename Scalar>
using tokens_out = detail::output_view<std::type_identity_t<Scalar>>;

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
