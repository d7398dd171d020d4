#include <sluice/kernel/format/changed_columns.hpp>
#include <sluice/kernel/format/codebook_storage.hpp>
#include <sluice/kernel/format/column_codes.hpp>
#include <sluice/kernel/format/outlier_storage.hpp>

#include "../packed_product.hpp"
#include "support.hpp"

using namespace sluice;

namespace {

vector_codes column_vectors(index_t outputs, index_t inputs, index_t length, index_t entries) {
  vector_codes codes{.outputs = outputs, .inputs = inputs, .tile_outputs = length};
  codes.codebooks.push_back(test::random_matrix<float>(entries, length, as_size(entries)));
  codes.indices.emplace_back(codes.tile_rows(), inputs);
  for (index_t i = 0; i < codes.indices[0].size(); ++i)
    codes.indices[0].data()[i] = static_cast<std::uint16_t>((5 * i + i / 7) % entries);
  return codes;
}

column_codes columns_with_parts(index_t outputs, index_t inputs) {
  column_codes codes;
  codes.outliers = column_vectors(outputs, 3, 2, 6);
  codes.main = column_vectors(outputs, inputs - 3, 4, 16);
  for (index_t j = 0; j < inputs; ++j) {
    codes.permutation.push_back(j * 7 % inputs);
    codes.scale.push_back(0.5F + static_cast<float>(j % 5));
    codes.bias.push_back(static_cast<float>(j % 3) - 1);
  }
  return codes;
}

}  // namespace

TEST_CASE("column codes: outliers, order, scale and bias around the codes, and a storage that holds them",
          "[kernel][format]") {
  const column_codes codes = columns_with_parts(22, 50);
  codes.validate();
  const matrix<float> w = codes.to_matrix();
  CHECK(w(9, 14) == codes.outliers.value(9, 2) * codes.scale[14] + codes.bias[14]);  // stored column 2 is input 14
  CHECK(w(9, 21) == codes.main.value(9, 0) * codes.scale[21] + codes.bias[21]);

  using inner = codebook_storage<4, 4, vector_direction::along_outputs, no_scale>;
  using storage = changed_columns<outlier_storage<inner, float>>;
  const auto [plain, beside] = codes.to_storable();
  const auto held = with_outliers<float>(packed_map<inner>(plain), beside);
  linear_map<storage> map(22, 50, storage(held.format(), codes.scale, codes.bias));
  std::copy_n(held.weight().data(), held.weight().value().size(), map.weight().data());
  CHECK(test::largest_difference(map.weight().to_matrix(), w) <= 0x1p-22F * w.cwiseAbs().maxCoeff());
  const matrix<float> x = test::random_matrix<float>(3, 50, 9);
  const matrix<float> expected = (x.cast<double>() * w.cast<double>().transpose()).cast<float>();
  CHECK(test::largest_difference(test::packed_product(x, map), expected) <=
        test::bound<float>(50, w.cwiseAbs().maxCoeff() * x.cwiseAbs().maxCoeff()));
}

TEST_CASE("changed columns: numbers are written with the change taken back", "[kernel][format]") {
  std::vector<float> scale(40, 2), bias(40, -1);
  scale[7] = 0;
  linear_map<changed_columns<bfloat16_storage>> map(9, 40, {bfloat16_storage{}, scale, bias});
  matrix<float> w = test::random_matrix<float>(9, 40, 4).unaryExpr([](float v) { return std::round(8 * v); });
  map.weight().assign(w);
  w.col(7).setConstant(-1);
  CHECK(map.weight().to_matrix() == w);
  CHECK_THROWS_AS((changed_columns<bfloat16_storage>({}, scale, {1.0F})), std::invalid_argument);
}

TEST_CASE("column codes: indices in a stream of bits", "[kernel][format]") {
  // 5 + 3 bits: 21 | 5 << 5 = 181, 2 | 7 << 5 = 226; a row ends with a whole word.
  const std::vector<std::byte> bytes{std::byte{181}, std::byte{226}, {}, {}, std::byte{31}, {}, {}, {}};
  matrix<std::uint16_t> main(2, 0), residual;
  unpack_indices(bytes, 2, 5, 3, main, &residual);
  CHECK((main(0, 0) == 21 && residual(0, 0) == 5 && main(0, 1) == 2 && residual(0, 1) == 7 && main(1, 0) == 31));
  main.resize(1, 0);
  unpack_indices(std::span(bytes).first(4), 2, 12, 0, main, nullptr);  // 0xE2B5: 0x2B5, then 0xE
  CHECK((main(0, 0) == 0x2B5 && main(0, 1) == 0xE));
  CHECK_THROWS_AS(unpack_indices(bytes, 2, 12, 0, main, nullptr), std::invalid_argument);
  CHECK_THROWS_AS(unpack_indices(bytes, 2, 17, 0, main, nullptr), std::invalid_argument);
  column_codes codes = columns_with_parts(8, 10);
  codes.permutation[0] = codes.permutation[1];
  CHECK_THROWS_AS(codes.validate(), std::invalid_argument);
  codes.permutation.clear();
  codes.bias.pop_back();
  CHECK_THROWS_AS(codes.validate(), std::invalid_argument);
}
