#include <sluice/core/buffer.hpp>

#include "../support.hpp"

#include <cstdint>
#include <numeric>

using namespace sluice;

namespace {

buffer<int> counting(index_t size) {
  buffer<int> b(size);
  std::iota(b.begin(), b.end(), 0);
  return b;
}

}  // namespace

TEST_CASE("buffer: growing keeps the elements, shrinking keeps the memory", "[core][buffer]") {
  buffer<int> b = counting(5);
  CHECK(b.size() == 5);
  b.resize(3);
  CHECK(b.size() == 3);
  CHECK(b.capacity() >= 5);
  const int* place = b.data();
  b.resize(5);
  CHECK(b.data() == place);
  b.resize(5000);
  for (int i = 0; i < 5; ++i) CHECK(b[i] == i);
  b.resize(0);
  CHECK(b.empty());
  CHECK(b.capacity() == 5000);
  b.clear();
  CHECK(b.begin() == b.end());
}

TEST_CASE("buffer: every element may be pushed, fill and assign reach all of them", "[core][buffer]") {
  buffer<index_t> b;
  for (index_t i = 0; i < 1000; ++i) b.push_back(i * i);
  REQUIRE(b.size() == 1000);
  for (index_t i = 0; i < 1000; ++i) REQUIRE(b[i] == i * i);
  b.fill(7);
  CHECK(std::count(b.begin(), b.end(), index_t(7)) == 1000);
  b.assign(3, 9);
  CHECK(b.size() == 3);
  CHECK(b == buffer<index_t>(3, 9));
  CHECK_FALSE(b == buffer<index_t>(2, 9));
  CHECK_FALSE(b == buffer<index_t>(3, 8));
  CHECK(b.span().size() == 3);
}

TEST_CASE("buffer: memory is aligned to a cache line", "[core][buffer]") {
  for (const index_t size : {1, 3, 17, 1000}) {
    const buffer<std::uint8_t> b(size, 1);
    CHECK(reinterpret_cast<std::uintptr_t>(b.data()) % 64 == 0);
  }
}

TEST_CASE("buffer: copies are independent, copies into large buffers keep their memory", "[core][buffer]") {
  const buffer<int> a = counting(10);
  buffer<int> b(a);
  b[3] = 77;
  CHECK(a[3] == 3);
  buffer<int> large(100, 5);
  const int* place = large.data();
  large = a;
  CHECK(large == a);
  CHECK(large.data() == place);
  buffer<int> small(2, 5);
  small = a;
  CHECK(small == a);
  buffer<int>& self = small;
  small = self;
  CHECK(small == a);
  buffer<int> empty;
  small = empty;
  CHECK(small.empty());
}

TEST_CASE("buffer: moving takes the memory along", "[core][buffer]") {
  buffer<int> a = counting(10);
  const int* place = a.data();
  buffer<int> b(std::move(a));
  CHECK(b.data() == place);
  CHECK(b[9] == 9);
  buffer<int> c = counting(3);
  c = std::move(b);
  CHECK(c.data() == place);
  CHECK(c.size() == 10);
  static_assert(std::is_nothrow_move_constructible_v<buffer<int>> && std::is_nothrow_move_assignable_v<buffer<int>>);
}

TEST_CASE("buffer: reserve makes room and changes nothing else", "[core][buffer]") {
  buffer<int> b(3, 7);
  b.reserve(50);
  CHECK(b.size() == 3);
  CHECK(b.capacity() == 50);
  CHECK(b[2] == 7);
  const int* memory = b.data();
  b.resize(50);
  b.reserve(4);
  CHECK(b.data() == memory);
  CHECK(b.capacity() == 50);
}

TEST_CASE("buffer: sizes that no memory has are refused with their numbers", "[core][buffer]") {
  const index_t half = index_t(1) << 62;
  buffer<double> b(3, 1.0);
  CHECK_THROWS_WITH(b.resize(half), "sluice: there is no array of 4611686018427387904 x 8 numbers");
  CHECK_THROWS_WITH(b.resize(-1), "sluice: there is no array of -1 x 8 numbers");
  CHECK_THROWS_AS(b.assign(-7, 0.0), std::invalid_argument);
  CHECK(b.size() == 3);
  matrix_buffer<float> m(2, 3);
  // The product is 2^64, which a plain multiplication takes for 0.
  CHECK_THROWS_WITH(m.resize(index_t(1) << 32, index_t(1) << 32),
                    "sluice: there is no array of 4294967296 x 4294967296 numbers");
  CHECK_THROWS_AS(m.reserve(half, 4), std::invalid_argument);
  CHECK_THROWS_AS(m.resize(-2, -2), std::invalid_argument);
  CHECK(m.rows() == 2);
  CHECK(m.cols() == 3);
}

TEST_CASE("matrix_buffer: a move leaves an empty matrix behind, copies keep their memory", "[core][buffer]") {
  matrix_buffer<float> from(2, 3);
  from(1, 2) = 5;
  matrix_buffer<float> to = std::move(from);
  CHECK(to(1, 2) == 5);
  CHECK(from.rows() == 0);
  CHECK(from.cols() == 0);
  from.resize(1, 1);
  from(0, 0) = 9;
  from = std::move(to);
  CHECK(from(1, 2) == 5);
  CHECK(to.empty());
  matrix_buffer<float> copy(4, 4);
  const float* memory = copy.data();
  copy = from;
  CHECK(copy.data() == memory);
  CHECK(copy.rows() == 2);
  CHECK(copy(1, 2) == 5);
}

TEST_CASE("matrix_buffer: rows, resizing and zeroing", "[core][buffer]") {
  matrix_buffer<float> m(3, 4);
  for (index_t r = 0; r < 3; ++r)
    for (index_t c = 0; c < 4; ++c) m(r, c) = static_cast<float>(10 * r + c);
  CHECK(m.row(2)[1] == 21);
  CHECK(m.map()(1, 3) == 13);
  CHECK(std::as_const(m).map()(1, 3) == 13);
  CHECK(m.size() == 12);
  const float* place = m.data();
  m.set_zero(4, 3);
  CHECK(m.data() == place);
  CHECK(m.map().isZero(0));
  m.resize(0, 9);
  CHECK(m.empty());
  CHECK(m.cols() == 9);
  m.clear();
  CHECK(m.cols() == 0);
}
