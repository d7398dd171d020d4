// A weight storage as a user would add it, with a state: codes that are places in a table of sixteen numbers.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/kernel/linear_map.hpp>

#include "packed_product.hpp"
#include "support.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

using namespace sluice;

namespace {

struct table_storage {
  using scalar = float;
  static constexpr index_t block = 1, lanes = kernel::simd_width<float>;

  const std::array<float, 16>* table = nullptr;

  static constexpr index_t bytes(index_t inputs) { return inputs * lanes; }

  void encode(const float* numbers, index_t first, index_t last, std::byte* panel) const {
    for (index_t i = 0; i < (last - first) * lanes; ++i) {
      const auto nearest = std::min_element(table->begin(), table->end(), [&](float a, float b) {
        return std::abs(a - numbers[i]) < std::abs(b - numbers[i]);
      });
      panel[first * lanes + i] = static_cast<std::byte>(nearest - table->begin());
    }
  }
  void decode(const std::byte* panel, index_t first, index_t last, float* numbers) const {
    for (index_t i = first * lanes; i < last * lanes; ++i) *numbers++ = (*table)[std::to_integer<std::size_t>(panel[i])];
  }
};
static_assert(WeightStorage<table_storage>);

/// Squares of both signs: denser near zero, as weights are.
std::array<float, 16> squares(float largest) {
  std::array<float, 16> table;
  for (std::size_t i = 0; i < 16; ++i) {
    const float t = (static_cast<float>(i) - 7.5F) / 7.5F;
    table[i] = largest * t * std::abs(t);
  }
  return table;
}

}  // namespace

TEST_CASE("a storage of one's own with a table: products, rounding, an expert and its gradients", "[kernel][storage]") {
  const std::array<float, 16> table = squares(1);
  linear_map<full_precision<float>> full(37, 50);
  full.weight().assign(test::random_matrix<float>(37, 50, 1).cwiseMin(1.0F).cwiseMax(-1.0F));
  const auto coded = full.stored_as(table_storage{&table});
  const matrix<float> decoded = coded.weight().to_matrix();
  for (index_t i = 0; i < decoded.size(); ++i) {
    CHECK(std::find(table.begin(), table.end(), decoded.data()[i]) != table.end());
    CHECK(std::abs(decoded.data()[i] - full.weight().element_at(i)) <= 0.13F);  // half of the widest gap, 1 - (13/15)^2
  }
  const matrix<float> x = test::random_matrix<float>(17, 50, 2);
  const auto widened = coded.stored_as(full_precision<float>());
  CHECK(test::same_bits(test::packed_product(x, coded), test::packed_product(x, widened)));

  ffn<float> expert(50, 40);
  expert.up().assign(test::random_matrix<float>(40, 50, 3));
  expert.down().assign(test::random_matrix<float>(50, 40, 4));
  auto rounded = expert.stored_as(table_storage{&table});
  auto back = rounded.stored_as(full_precision<float>());
  const matrix<float> dy = test::random_matrix<float>(17, 50, 5);
  const auto run = [&](auto& e) {
    matrix<float> y(17, 50), dx(17, 50), nothing(17, 0);
    e.forward(x, y, nothing);
    e.backward(x, dy, nothing, dx);
    return std::pair(y, dx);
  };
  const auto [y, dx] = run(rounded);
  const auto [expected_y, expected_dx] = run(back);
  CHECK(test::same_bits(y, expected_y));
  CHECK(test::same_bits(dx, expected_dx));
}
