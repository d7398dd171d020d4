#include <sluice/core/types.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("extent: a fixed count takes no space, a dynamic one holds its value", "[core][types]") {
  static_assert(extent<8>::value() == 8 && extent<8>::is_fixed);
  static_assert(!extent<dynamic>::is_fixed);
  static_assert(std::is_empty_v<extent<8>>);
  static_assert(extent<8>(3).value() == 8);
  CHECK(extent<dynamic>(5).value() == 5);
  CHECK(extent<dynamic>().value() == 0);

  struct with_fixed {
    SLUICE_NO_UNIQUE_ADDRESS extent<4> count;
    double number;
  };
  static_assert(sizeof(with_fixed) == sizeof(double));
}

namespace {

template <typename Scalar>
Scalar sum_of(tokens_in<Scalar> x) {
  return x.sum();
}
template <typename Scalar>
void fill(tokens_out<Scalar> y, Scalar value) {
  y.setConstant(value);
}

}  // namespace

TEST_CASE("tokens_in, tokens_out: matrices, maps and blocks of rows and columns bind without a copy", "[core][types]") {
  matrix<float> m = matrix<float>::Constant(4, 6, 1.0f);
  CHECK(sum_of<float>(m) == 24);
  CHECK(sum_of<float>(m.middleRows(1, 2)) == 12);
  CHECK(sum_of<float>(m.rightCols(2)) == 8);
  fill<float>(m.block(1, 2, 2, 3), 5.0f);
  CHECK(m.sum() == 24 + 6 * 4);
  CHECK(m(1, 1) == 1);
  CHECK(m(2, 4) == 5);
  fill<float>(matrix_map<float>(m.data(), 2, 6), 0.0f);
  CHECK(m.topRows(2).isZero(0));
  const Eigen::Ref<const matrix<float>, 0, Eigen::OuterStride<>> view(m.rightCols(2));
  CHECK(view.data() == m.data() + 4);
  CHECK(view.outerStride() == 6);
}
