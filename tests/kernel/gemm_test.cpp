#include <sluice/kernel/gemm.hpp>

#include <sluice/core/numeric.hpp>

#include "../guarded.hpp"
#include "../support.hpp"

using namespace sluice;
using put = kernel::write;  // unistd.h has a function of the name
using test::guard;
using test::guarded_array;

namespace {

/// A matrix of random numbers whose last (or first) number touches forbidden memory. Rows are `cols + gap` apart; the
/// gaps hold a mark that no kernel may read as data or overwrite.
template <typename Scalar>
class framed_matrix {
public:
  framed_matrix(index_t rows, index_t cols, index_t gap, guard where, std::uint64_t seed)
      : rows_(rows),
        cols_(cols),
        stride_(cols + gap),
        memory_(rows == 0 ? 0 : (rows - 1) * stride_ + cols, where, mark) {
    const matrix<Scalar> numbers = test::random_matrix<Scalar>(rows, cols, seed);
    for (index_t r = 0; r < rows; ++r)
      for (index_t c = 0; c < cols; ++c) (*this)(r, c) = numbers(r, c);
  }
  Scalar& operator()(index_t r, index_t c) { return memory_.data()[r * stride_ + c]; }
  Scalar* data() { return memory_.data(); }
  index_t stride() const { return stride_; }
  matrix<Scalar> copy() {
    matrix<Scalar> m(rows_, cols_);
    for (index_t r = 0; r < rows_; ++r)
      for (index_t c = 0; c < cols_; ++c) m(r, c) = (*this)(r, c);
    return m;
  }
  bool gaps_are_intact() {
    for (index_t r = 0; r + 1 < rows_; ++r)
      for (index_t c = cols_; c < stride_; ++c)
        if (memory_.data()[r * stride_ + c] != mark) return false;
    return true;
  }

private:
  static constexpr Scalar mark = 12345;
  index_t rows_, cols_, stride_;
  guarded_array<Scalar> memory_;
};

enum class form { nt, nn, tn };

/// C [m,n] (+)= op(A) op(B), in framed matrices.
template <typename Scalar>
struct product {
  form f;
  index_t m, n, k;
  framed_matrix<Scalar> a, b, c;

  product(form f_, index_t m_, index_t n_, index_t k_, index_t gap, guard where)
      : f(f_),
        m(m_),
        n(n_),
        k(k_),
        a(f_ == form::tn ? k_ : m_, f_ == form::tn ? m_ : k_, gap, where, 1),
        b(f_ == form::nt ? n_ : k_, f_ == form::nt ? k_ : n_, gap, where, 2),
        c(m_, n_, gap, where, 3) {}

  void run(put mode) { run_rows(0, m, mode); }
  void run_rows(index_t begin, index_t end, put mode) {
    const index_t rows = end - begin;
    Scalar* out = c.data() + begin * c.stride();
    switch (f) {
      case form::nt:
        return kernel::multiply_nt(rows, n, k, a.data() + begin * a.stride(), a.stride(), b.data(), b.stride(), out,
                                   c.stride(), mode);
      case form::nn:
        return kernel::multiply_nn(rows, n, k, a.data() + begin * a.stride(), a.stride(), b.data(), b.stride(), out,
                                   c.stride(), mode);
      case form::tn:
        return kernel::multiply_tn(rows, n, k, a.data() + begin, a.stride(), b.data(), b.stride(), out, c.stride(),
                                   mode);
    }
  }

  /// The same in long double, and the sum of absolute products, which scales the rounding error.
  void reference(const matrix<Scalar>& before, put mode, matrix<long double>& value, matrix<long double>& size) {
    value = matrix<long double>::Zero(m, n);
    size = matrix<long double>::Zero(m, n);
    for (index_t i = 0; i < m; ++i)
      for (index_t j = 0; j < n; ++j) {
        if (mode == put::accumulate)
          value(i, j) = before(i, j), size(i, j) = std::abs(static_cast<long double>(before(i, j)));
        for (index_t p = 0; p < k; ++p) {
          const auto left = static_cast<long double>(f == form::tn ? a(p, i) : a(i, p));
          const auto right = static_cast<long double>(f == form::nt ? b(j, p) : b(p, j));
          value(i, j) += left * right;
          size(i, j) += std::abs(left * right);
        }
      }
  }

  /// |computed - exact| <= (k + 1) eps (sum of |a| |b|, plus |c| if added to), times 2 for second-order terms.
  bool is_right(put mode) {
    const matrix<Scalar> before = c.copy();
    matrix<long double> value, size;
    reference(before, mode, value, size);
    run(mode);
    const long double unit =
        2 * static_cast<long double>(k + 1) * static_cast<long double>(std::numeric_limits<Scalar>::epsilon());
    for (index_t i = 0; i < m; ++i)
      for (index_t j = 0; j < n; ++j)
        if (!(std::abs(static_cast<long double>(c(i, j)) - value(i, j)) <= unit * size(i, j))) return false;
    return a.gaps_are_intact() && b.gaps_are_intact() && c.gaps_are_intact();
  }
};

constexpr form forms[] = {form::nt, form::nn, form::tn};

}  // namespace

TEMPLATE_TEST_CASE("gemm: every tail length along k equals the naive loop, beside forbidden memory", "[kernel][gemm]",
                   float, double) {
  for (const form f : forms)
    for (index_t k = 0; k <= 70; ++k)
      for (const guard where : {guard::before, guard::behind}) {
        CAPTURE(static_cast<int>(f), k);
        CHECK(product<TestType>(f, 5, 7, k, 0, where).is_right(put::replace));
        CHECK(product<TestType>(f, 5, 7, k, 0, where).is_right(put::accumulate));
      }
}

TEMPLATE_TEST_CASE("gemm: every tail length along m and n equals the naive loop, beside forbidden memory",
                   "[kernel][gemm]", float, double) {
  for (const form f : forms)
    for (index_t size = 0; size <= 70; ++size) {
      CAPTURE(static_cast<int>(f), size);
      const guard where = size % 2 == 0 ? guard::before : guard::behind;
      CHECK(product<TestType>(f, size, 3, 19, 0, where).is_right(put::replace));
      CHECK(product<TestType>(f, 3, size, 19, 0, where).is_right(put::accumulate));
      CHECK(product<TestType>(f, size, size, 11, 0, guard::behind).is_right(put::replace));
    }
}

TEMPLATE_TEST_CASE("gemm: rows that lie apart are read and written without their gaps", "[kernel][gemm]", float,
                   double) {
  for (const form f : forms)
    for (const index_t gap : {1, 3, 16})
      for (const index_t size : {1, 8, 17, 33}) {
        CAPTURE(static_cast<int>(f), gap, size);
        CHECK(product<TestType>(f, size, size + 2, size + 1, gap, guard::behind).is_right(put::replace));
        CHECK(product<TestType>(f, size, size + 2, size + 1, gap, guard::before).is_right(put::accumulate));
      }
}

TEMPLATE_TEST_CASE("gemm: shapes of real layers equal the naive loop", "[kernel][gemm]", float, double) {
  struct shape {
    index_t m, n, k;
  };
  const auto s = GENERATE(shape{37, 768, 64}, shape{1, 512, 300}, shape{200, 33, 129});
  for (const form f : forms) CHECK(product<TestType>(f, s.m, s.n, s.k, 0, guard::behind).is_right(put::replace));
}

TEMPLATE_TEST_CASE("gemm: rows may be cut into blocks anywhere and give the same bits", "[kernel][gemm][determinism]",
                   float, double) {
  const index_t m = 23, n = 41, k = 57;
  for (const form f : forms)
    for (const put mode : {put::replace, put::accumulate}) {
      product<TestType> whole(f, m, n, k, 0, guard::behind);
      whole.run(mode);
      const matrix<TestType> expected = whole.c.copy();
      for (index_t cut = 1; cut < m; ++cut) {
        CAPTURE(static_cast<int>(f), cut);
        product<TestType> parts(f, m, n, k, 0, guard::behind);
        parts.run_rows(cut, m, mode);
        parts.run_rows(0, cut, mode);
        CHECK(test::same_bits(parts.c.copy(), expected));
      }
      product<TestType> singles(f, m, n, k, 0, guard::behind);
      for (index_t r = 0; r < m; ++r) singles.run_rows(r, r + 1, mode);
      CHECK(test::same_bits(singles.c.copy(), expected));
    }
}

TEMPLATE_TEST_CASE("gemm: columns may be cut at whole vectors and give the same bits", "[kernel][gemm][determinism]",
                   float, double) {
  // What sharing one weight matrix between tasks needs: a column's sum does not depend on its neighbours.
  const index_t m = 6, k = 57, n = 4 * kernel::simd_width<TestType> + 3;
  const matrix<TestType> a = test::random_matrix<TestType>(m, k, 1), b = test::random_matrix<TestType>(n, k, 2);
  matrix<TestType> whole(m, n), parts(m, n);
  kernel::multiply_nt(m, n, k, a.data(), k, b.data(), k, whole.data(), n);
  for (index_t j = 0; j < n; ++j)
    kernel::multiply_nt(m, index_t(1), k, a.data(), k, b.data() + j * k, k, parts.data() + j, n);
  CHECK(test::same_bits(parts, whole));
}

TEMPLATE_TEST_CASE("gemm: NaN in one row of A stays in that row of C", "[kernel][gemm]", float, double) {
  for (const form f : {form::nt, form::nn}) {
    product<TestType> clean(f, 9, 10, 21, 0, guard::behind);
    clean.run(put::replace);
    product<TestType> dirty(f, 9, 10, 21, 0, guard::behind);
    dirty.a(4, 7) = quiet_nan<TestType>();
    dirty.run(put::replace);
    for (index_t i = 0; i < 9; ++i)
      for (index_t j = 0; j < 10; ++j)
        if (i == 4)
          CHECK(is_nan(dirty.c(i, j)));
        else
          CHECK(dirty.c(i, j) == clean.c(i, j));
  }
}
