#include <sluice/kernel/column_softmax.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
matrix_buffer<Scalar> buffer_of(const matrix<Scalar>& m) {
  matrix_buffer<Scalar> b(m.rows(), m.cols());
  b.map() = m;
  return b;
}
const auto every = [](index_t) { return true; };

}  // namespace

TEMPLATE_TEST_CASE("column_softmax: equals the definition on the used rows of a block", "[kernel][column_softmax]",
                   float, double) {
  using S = TestType;
  const index_t columns = GENERATE(1, 15, 16, 17, 40);
  const matrix<S> in = test::random_matrix<S>(9, columns, 3) * S(4);
  auto out = buffer_of<S>(matrix<S>::Constant(9, columns, 77));
  const auto used = [](index_t t) { return t != 4; };
  column_softmax(buffer_of(in), {2, 8}, used, out, {});
  for (index_t s = 0; s < columns; ++s) {
    double sum = 0;
    for (index_t t = 2; t < 8; ++t) sum += used(t) ? std::exp(double(in(t, s))) : 0;
    for (index_t t = 0; t < 9; ++t) {
      if (t < 2 || t >= 8 || !used(t))
        CHECK(out(t, s) == 77);
      else
        CHECK(std::abs(double(out(t, s)) - std::exp(double(in(t, s))) / sum) <=
              test::bound<S>(6 + 16));  // exp of up to 16
    }
  }
}

TEST_CASE("column_softmax: infinities are values, large numbers do not overflow", "[kernel][column_softmax]") {
  const double infinity = std::numeric_limits<double>::infinity();
  matrix<double> in(3, 4);
  in << infinity, 1e300, -infinity, -infinity, 5, 1e300, 0, -infinity, infinity, 0, 0, -infinity;
  auto out = buffer_of<double>(matrix<double>::Zero(3, 4));
  column_softmax(buffer_of(in), {0, 3}, every, out, {});
  matrix<double> wanted(3, 4);
  wanted << 0.5, 0.5, 0, 1 / 3.0, 0, 0.5, 0.5, 1 / 3.0, 0.5, 0, 0.5, 1 / 3.0;
  CHECK(test::largest_difference(matrix<double>(out.map()), wanted) <= test::bound<double>(3));
}

TEST_CASE("column_softmax: backward equals central differences", "[kernel][column_softmax][gradient]") {
  matrix<double> in = test::random_matrix<double>(6, 18, 5);
  const matrix<double> dout = test::random_matrix<double>(6, 18, 6);
  const auto used = [](index_t t) { return t != 3; };
  const auto objective = [&] {
    auto out = buffer_of<double>(matrix<double>::Zero(6, 18));
    column_softmax(buffer_of(in), {1, 6}, used, out, {});
    return (out.map().array() * dout.array()).sum();
  };
  auto out = buffer_of<double>(matrix<double>::Zero(6, 18));
  column_softmax(buffer_of(in), {1, 6}, used, out, {});
  auto din = buffer_of<double>(matrix<double>::Constant(6, 18, 2));
  column_softmax_backward(out, buffer_of(dout), {1, 6}, used, din, {});
  for (index_t i = 0; i < in.size(); ++i) {
    const double kept = in.data()[i];
    in.data()[i] = kept + 1e-6;
    const double above = objective();
    in.data()[i] = kept - 1e-6;
    const double numeric = (above - objective()) / 2e-6;
    in.data()[i] = kept;
    CHECK(std::abs(din.data()[i] - 2 - numeric) < 1e-8);
  }
}

TEST_CASE("column_softmax: nothing used, nothing done", "[kernel][column_softmax]") {
  const auto in = buffer_of<float>(matrix<float>::Constant(2, 3, quiet_nan<float>()));
  auto out = buffer_of<float>(matrix<float>::Constant(2, 3, 5));
  column_softmax(in, {0, 2}, [](index_t) { return false; }, out, {});
  column_softmax(in, {1, 1}, every, out, {});
  CHECK((out.map().array() == 5).all());
}
