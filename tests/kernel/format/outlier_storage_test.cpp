#include <sluice/kernel/block_storage.hpp>
#include <sluice/kernel/format/outlier_storage.hpp>

#include "../packed_product.hpp"
#include "support.hpp"

using namespace sluice;

namespace {

/// About one weight of `every`, as halves, with whole rows and columns without any.
sparse_weights drawn_outliers(index_t outputs, index_t inputs, index_t every) {
  sparse_weights beside;
  beside.inputs = inputs;
  for (index_t o = 0; o < outputs; ++o) {
    for (index_t i = 0; i < inputs; ++i)
      if (o % 5 != 3 && (o * 31 + i * 17) % every == 0) {
        beside.input.push_back(static_cast<std::int32_t>(i));
        beside.values.push_back(static_cast<float>(i % 64) - 31.5F);
      }
    beside.first.push_back(beside.size());
  }
  return beside;
}

}  // namespace

TEST_CASE("outlier storage: outliers stand in place of what the storage has", "[kernel][format]") {
  for (const index_t inputs : {1, 96, 128, 300}) {
    linear_map<int4_blocks> base(21, inputs);
    base.weight().assign(test::random_matrix<float>(21, inputs, 1));
    const sparse_weights beside = drawn_outliers(21, inputs, 9);
    const auto map = with_outliers(base, beside);
    matrix<float> w = base.weight().to_matrix();
    beside.put_into(w);
    CHECK(test::same_bits(map.weight().to_matrix(), w));
    CHECK(map.format().outlier_bytes() == 4 * beside.size());
    const matrix<float> x = test::random_matrix<float>(4, inputs, 2);
    const matrix<float> expected = (x.cast<double>() * w.cast<double>().transpose()).cast<float>();
    CHECK(test::largest_difference(test::packed_product(x, map), expected) <=
          test::bound<float>(inputs, 32 * x.cwiseAbs().maxCoeff()));
    // Any part of a panel, as kernels ask for them.
    std::vector<float> part(as_size(inputs * map.format().lanes));
    map.format().decode(map.panel(0), inputs / 2, inputs, part.data());
    for (index_t i = inputs / 2; i < inputs; ++i)
      CHECK(part[as_size((i - inputs / 2) * map.format().lanes + 1)] == w(1, i));
  }
}

TEST_CASE("outlier storage: any storage, floats as values, none at all, and what is refused", "[kernel][format]") {
  linear_map<bfloat16_storage> base(9, 40);
  base.weight().assign(test::random_matrix<float>(9, 40, 3));
  sparse_weights beside = drawn_outliers(9, 40, 7);
  beside.values[0] = 0.1F;  // no half
  CHECK_THROWS_AS(with_outliers(base, beside), std::invalid_argument);
  matrix<float> w = base.weight().to_matrix();
  beside.put_into(w);
  auto map = with_outliers<float>(base, beside);
  CHECK(test::same_bits(map.weight().to_matrix(), w));
  map.weight().assign(w);  // written anew: no outliers any more
  CHECK(map.weight().to_matrix() == w.unaryExpr([](float v) { return to_float(round_to<bfloat16>(v)); }));

  sparse_weights none;
  none.inputs = 40;
  none.first.assign(10, 0);
  CHECK(test::same_bits(with_outliers(base, none).weight().to_matrix(), base.weight().to_matrix()));
  none.inputs = 41;
  CHECK_THROWS_AS(with_outliers(base, none), std::invalid_argument);
}
