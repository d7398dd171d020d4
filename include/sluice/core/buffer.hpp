/// Memory that grows to the largest batch seen and then stays: what workspaces and tapes are made of.
///
/// resize() keeps the capacity and leaves new elements unset, so a warm forward call allocates nothing and clears
/// nothing. Copies copy the used part. Elements are trivially copyable and aligned to 64 bytes (one cache line, one
/// AVX-512 vector); large ones lie in huge pages where the system gives them (core/huge_pages.hpp).
#pragma once

#include <sluice/core/checked_size.hpp>
#include <sluice/core/huge_pages.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename T>
class buffer {
  static_assert(std::is_trivially_copyable_v<T>, "sluice: a buffer holds plain numbers");

public:
  buffer() = default;
  explicit buffer(index_t size) { resize(size); }
  buffer(index_t size, T value) { assign(size, value); }
  buffer(const buffer& other) { copy_from(other); }
  buffer(buffer&& other) noexcept { swap(other); }
  buffer& operator=(const buffer& other) {
    if (this != &other) copy_from(other);
    return *this;
  }
  buffer& operator=(buffer&& other) noexcept {
    buffer moved(std::move(other));
    swap(moved);
    return *this;
  }
  ~buffer() { release(data_); }

  void swap(buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

  /// Changes the size; the first min(old, new) elements stay, new ones are unset. If memory runs out nothing changes.
  /// Throws std::invalid_argument if the size is negative or its bytes are more than a number can say.
  void resize(index_t size) {
    if (static_cast<std::uint64_t>(size) > static_cast<std::uint64_t>(capacity_)) grow(size);  // negative: far too many
    size_ = size;
  }

  /// Makes room for this many elements, so that no resize() up to it allocates.
  void reserve(index_t capacity) {
    if (capacity > capacity_) grow(capacity);
  }

  void assign(index_t size, T value) {
    resize(size);
    std::fill_n(data_, size, value);
  }

  void push_back(T value) {
    if (size_ == capacity_) grow(std::max<index_t>(16, 2 * capacity_));
    data_[size_++] = value;
  }

  void clear() noexcept { size_ = 0; }
  void fill(T value) noexcept { std::fill_n(data_, size_, value); }

  index_t size() const noexcept { return size_; }
  index_t capacity() const noexcept { return capacity_; }
  bool empty() const noexcept { return size_ == 0; }
  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  T* begin() noexcept { return data_; }
  T* end() noexcept { return data_ + size_; }
  const T* begin() const noexcept { return data_; }
  const T* end() const noexcept { return data_ + size_; }
  T& operator[](index_t i) noexcept { return data_[i]; }
  const T& operator[](index_t i) const noexcept { return data_[i]; }
  std::span<T> span() noexcept { return {data_, static_cast<std::size_t>(size_)}; }
  std::span<const T> span() const noexcept { return {data_, static_cast<std::size_t>(size_)}; }

  friend bool operator==(const buffer& a, const buffer& b) noexcept {
    return a.size_ == b.size_ && std::equal(a.begin(), a.end(), b.begin());
  }

private:
  static constexpr std::align_val_t alignment{64};

  void grow(index_t capacity) {
    const index_t bytes = checked_product(capacity, static_cast<index_t>(sizeof(T)));
    T* fresh = static_cast<T*>(::operator new(static_cast<std::size_t>(bytes), alignment));
    detail::ask_for_huge_pages(fresh, static_cast<std::size_t>(bytes));
    if (data_ != nullptr) std::memcpy(fresh, data_, static_cast<std::size_t>(size_) * sizeof(T));
    release(data_);
    data_ = fresh;
    capacity_ = capacity;
  }

  void copy_from(const buffer& other) {
    if (other.size_ > capacity_) {
      buffer fresh;  // so that this one keeps its elements if memory runs out
      fresh.grow(other.size_);
      swap(fresh);
    }
    if (other.size_ > 0) std::memcpy(data_, other.data_, static_cast<std::size_t>(other.size_) * sizeof(T));
    size_ = other.size_;
  }

  static void release(T* data) noexcept {
    if (data) ::operator delete(data, alignment);
  }

  T* data_ = nullptr;
  index_t size_ = 0;
  index_t capacity_ = 0;
};

/// A row-major matrix on a buffer: resizing within the largest size seen allocates nothing.
template <typename Scalar>
class matrix_buffer {
public:
  matrix_buffer() = default;
  matrix_buffer(index_t rows, index_t cols) { resize(rows, cols); }
  matrix_buffer(const matrix_buffer&) = default;
  matrix_buffer& operator=(const matrix_buffer& other) {
    numbers_ = other.numbers_;  // may run out of memory: the shape follows
    rows_ = other.rows_;
    cols_ = other.cols_;
    return *this;
  }
  matrix_buffer(matrix_buffer&& other) noexcept { swap(other); }
  matrix_buffer& operator=(matrix_buffer&& other) noexcept {
    matrix_buffer moved(std::move(other));
    swap(moved);
    return *this;
  }

  void swap(matrix_buffer& other) noexcept {
    numbers_.swap(other.numbers_);
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
  }

  void resize(index_t rows, index_t cols) {
    numbers_.resize(checked_product(rows, cols));
    rows_ = rows;
    cols_ = cols;
  }
  void reserve(index_t rows, index_t cols) { numbers_.reserve(checked_product(rows, cols)); }
  void set_zero(index_t rows, index_t cols) {
    resize(rows, cols);
    numbers_.fill(Scalar(0));
  }
  void clear() noexcept { rows_ = cols_ = 0, numbers_.clear(); }

  index_t rows() const noexcept { return rows_; }
  index_t cols() const noexcept { return cols_; }
  index_t size() const noexcept { return rows_ * cols_; }
  bool empty() const noexcept { return size() == 0; }
  Scalar* data() noexcept { return numbers_.data(); }
  const Scalar* data() const noexcept { return numbers_.data(); }
  Scalar* row(index_t r) noexcept { return data() + r * cols_; }
  const Scalar* row(index_t r) const noexcept { return data() + r * cols_; }
  Scalar& operator()(index_t r, index_t c) noexcept { return row(r)[c]; }
  const Scalar& operator()(index_t r, index_t c) const noexcept { return row(r)[c]; }

  matrix_map<Scalar> map() noexcept { return {data(), rows_, cols_}; }
  const_matrix_map<Scalar> map() const noexcept { return {data(), rows_, cols_}; }

private:
  buffer<Scalar> numbers_;
  index_t rows_ = 0;
  index_t cols_ = 0;
};

namespace detail {

/// f(begin, end) for every maximal run of rows in [begin, end) that hold a number other than zero.
template <typename Scalar, typename F>
void for_each_used_run(const matrix_buffer<Scalar>& factor, index_t begin, index_t end, F&& f) {
  const auto used = [&](index_t r) {
    const Scalar* row = factor.row(r);
    return std::any_of(row, row + factor.cols(), [](const Scalar& v) { return v != Scalar(0); });
  };
  for (index_t r = begin; r < end; ++r) {
    if (!used(r)) continue;
    const index_t first = r;
    while (r < end && used(r)) ++r;
    f(first, r);
  }
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
