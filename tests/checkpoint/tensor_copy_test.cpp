#include <sluice/checkpoint/encoding/fp8_tiles.hpp>
#include <sluice/checkpoint/file_storages.hpp>
#include <sluice/checkpoint/tensor_copy.hpp>
#include <sluice/io/gguf_tensor.hpp>
#include <sluice/kernel/block_storage.hpp>
#include <sluice/kernel/linear_map.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// A tensor of `count` elements that are all different, with the bits of a NaN that carries a message among them.
template <typename Stored>
struct stored_tensor {
  explicit stored_tensor(index_t count) {
    for (index_t i = 0; i < count; ++i) values.push_back(to_element<Stored>(0.25f + static_cast<float>(i % 251)));
    if constexpr (std::same_as<Stored, bfloat16>) values[1].bits = 0x7fa5;  // a signalling NaN
    info.dtype = detail::file_type_of<Stored>();
    info.shape = {count};
    info.bytes = std::as_bytes(std::span<const Stored>(values));
  }
  stored_tensor(const stored_tensor&) = delete;

  std::vector<Stored> values;
  tensor_info info;
};

template <typename Storage, typename Stored>
void check_both_ways(index_t rows, index_t cols, const tensor_place& place) {
  CAPTURE(rows, cols, place.offset, place.row_stride, place.col_stride);
  const index_t count = place.offset + (rows - 1) * place.row_stride + (cols - 1) * place.col_stride + 3;
  const stored_tensor<Stored> tensor(count);
  linear_map<Storage> map(rows, cols);
  tensor_copy copy(map.weight(), place);
  REQUIRE(copy.obstacle(tensor.info).empty());
  copy.from = &tensor.info;
  conversion_loss loss;
  for (index_t b = 0; b < copy.blocks(); ++b) copy.read(b, loss);
  CHECK(loss.elements == 0);  // counted before, by read_losses

  // Elements that the file has in the layer's own type keep their bits; numbers here are exact in every type but
  // float16's and bfloat16's, where both roads round the same number.
  using element = typename Storage::element;
  for (index_t r = 0; r < rows; ++r)
    for (index_t c = 0; c < cols; ++c) {
      const Stored from =
          tensor.values[static_cast<std::size_t>(place.offset + r * place.row_stride + c * place.col_stride)];
      const element got = map.weight().data()[map.weight().layout().place(r, c)];
      element expected;
      if constexpr (std::same_as<element, Stored>)
        expected = from;
      else
        expected = to_element<element>(static_cast<typename Storage::scalar>(to_number(from)));
      if (std::memcmp(&got, &expected, sizeof got) != 0) FAIL("element " << r << ", " << c);
    }

  // Written back in pieces, as the type it was: equal bits wherever the matrix lies, nothing touched elsewhere.
  if constexpr (std::same_as<element, Stored>) {
    std::vector<Stored> back(tensor.values.size(), to_element<Stored>(-7.0f));
    std::vector<Stored> expected = back;
    for (index_t r = 0; r < rows; ++r)
      for (index_t c = 0; c < cols; ++c) {
        const auto i = static_cast<std::size_t>(place.offset + r * place.row_stride + c * place.col_stride);
        expected[i] = tensor.values[i];
      }
    constexpr index_t piece = 37;
    for (index_t first = 0; first < count; first += piece)
      copy.write(tensor.info.dtype, first,
                 std::as_writable_bytes(std::span(back).subspan(
                     static_cast<std::size_t>(first), static_cast<std::size_t>(std::min(piece, count - first)))));
    CHECK(std::memcmp(back.data(), expected.data(), back.size() * sizeof(Stored)) == 0);
  }
}

template <typename Storage, typename Stored>
void check_places() {
  for (const auto& [rows, cols] :
       {std::pair<index_t, index_t>{1, 1}, {3, 70}, {64, 64}, {65, 33}, {130, 131}, {1, 100}}) {
    check_both_ways<Storage, Stored>(rows, cols, {"", {}, 5, cols, 1});         // [out,in]
    check_both_ways<Storage, Stored>(rows, cols, {"", {}, 0, 1, rows});         // [in,out]
    check_both_ways<Storage, Stored>(rows, cols, {"", {}, 1, 2, 2 * rows});     // [in,out], every other column
    check_both_ways<Storage, Stored>(rows, cols, {"", {}, cols, 2 * cols, 1});  // [out,in], every other row
  }
  check_both_ways<Storage, Stored>(100, 1, {"", {}, 4, 1, 1});
  check_both_ways<Storage, Stored>(100, 1, {"", {}, 1, 2, 1});
}

}  // namespace

TEST_CASE("tensor_copy: every place into every storage and back, bit for bit where types agree", "[checkpoint]") {
  SECTION("float") {
    check_places<full_precision<float>, float>();
    check_places<full_precision<float>, bfloat16>();
    check_places<full_precision<float>, double>();
  }
  SECTION("double") {
    check_places<full_precision<double>, double>();
    check_places<full_precision<double>, float16>();
  }
  SECTION("bfloat16") {
    check_places<bfloat16_storage, bfloat16>();
    check_places<bfloat16_storage, float>();
  }
  SECTION("float16") {
    check_places<float16_storage, float16>();
    check_places<float16_storage, bfloat16>();
  }
}

TEMPLATE_TEST_CASE("tensor_copy: weights in codes are read as assigned, and written as decoded", "[checkpoint]",
                   int8_blocks, int4_blocks, coded_storage<q4_k_format>) {
  for (const auto& shape : {std::pair<index_t, index_t>{1, 1}, {64, 64}, {65, 33}, {130, 131}, {3, 600}})
    for (const bool transposed : {false, true}) {
      const index_t rows = shape.first, cols = shape.second;
      CAPTURE(rows, cols, transposed);
      const tensor_place place{"", {}, 3, transposed ? 1 : cols, transposed ? rows : 1};
      const stored_tensor<float> tensor(3 + rows * cols);
      const auto value = [&](index_t i) {
        return tensor.values[as_size(3 + i / cols * place.row_stride + i % cols * place.col_stride)];
      };
      linear_map<TestType> map(rows, cols), expected(rows, cols);
      expected.weight().fill(value);
      tensor_copy copy(map.weight(), place);
      copy.from = &tensor.info;
      conversion_loss loss;
      for (index_t b = 0; b < copy.blocks(); ++b) copy.read(b, loss);
      CHECK(std::ranges::equal(map.weight().value(), expected.weight().value()));
      conversion_loss counted;
      const matrix<float> rounded = map.weight().to_matrix();
      for (index_t i = 0; i < rows * cols; ++i)
        detail::add_change(static_cast<double>(value(i)), static_cast<double>(rounded.data()[i]), counted);
      CHECK(loss == counted);
      std::vector<float> back(tensor.values.size());
      copy.write(data_type::f32, 0, std::as_writable_bytes(std::span(back)));
      const matrix<float> decoded = map.weight().to_matrix();
      for (index_t i = 0; i < rows * cols; ++i)
        if (back[as_size(3 + i / cols * place.row_stride + i % cols * place.col_stride)] != decoded.data()[i])
          FAIL("element " << i);
    }
}

TEST_CASE("tensor_copy: blocks of a GGUF file are taken as they are where the storage has their format",
          "[checkpoint]") {
  const index_t rows = 70, cols = 512;
  std::vector<std::byte> bytes(as_size(2 * rows * cols / 256 * 144));
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(i * 7 % 251 & (i % 144 < 4 ? 0x3FU : 0xFFU));
  const tensor_info tensor =
      detail::gguf_tensor("t", static_cast<std::uint32_t>(ggml_type::q4_k), {2, rows, cols}, bytes);
  std::vector<float> numbers(tensor.elements());
  safetensors_reader::copy<float>(tensor, numbers);
  linear_map<coded_storage<q4_k_format>> same(rows, cols);
  linear_map<coded_storage<q8_0_format>> other(rows, cols);
  // The second matrix of a stack, and every second row of both.
  for (const tensor_place& place :
       {tensor_place{"", {}, rows * cols, cols, 1}, tensor_place{"", {}, cols, 2 * cols, 1}}) {
    const auto value = [&](index_t i) {
      return numbers[as_size(place.offset + i / cols * place.row_stride + i % cols)];
    };
    tensor_copy copy(same.weight(), place);
    copy.from = &tensor;
    conversion_loss loss;
    for (index_t b = 0; b < copy.blocks(); ++b) copy.read(b, loss);
    CHECK(loss.elements == 0);
    const matrix<float> taken = same.weight().to_matrix();
    bool equal = true;
    for (index_t i = 0; i < rows * cols; ++i)
      equal = equal && detail::bits_of(taken.data()[i]) == detail::bits_of(value(i));
    CHECK(equal);

    tensor_copy rounding(other.weight(), place);
    rounding.from = &tensor;
    for (index_t b = 0; b < rounding.blocks(); ++b) rounding.read(b, loss);
    CHECK(loss.elements == static_cast<std::uint64_t>(rows * cols));
    CHECK(loss.rounded > 0);
  }
}

TEST_CASE("tensor_copy: codes with scales are taken as they are where the storage holds them, else rounded and counted",
          "[checkpoint]") {
  const index_t rows = 70, cols = 200;
  std::vector<std::uint8_t> codes(as_size(rows * cols));
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 7 % 251 & 0xBFU);
  const std::vector<float> scales{0.3F, 1.7F};
  const tensor_info weight{"w", data_type::f8_e4m3, {rows, cols}, std::as_bytes(std::span(codes))};
  const tensor_info scale{"s", data_type::f32, {1, 2}, std::as_bytes(std::span(scales))};
  const auto coded = std::make_shared<const fp8_tiles>(weight, scale, 128, 128);
  const tensor_info tensor{"w", data_type::other, {rows, cols}, weight.bytes, "FP8", coded};
  linear_map<coded_storage<fp8_format>> same(rows, cols);
  linear_map<coded_storage<q8_0_format>> other(rows, cols);
  const auto load = [&](auto& map) {
    tensor_copy copy(map.weight(), {"", {rows, cols}, 0, cols, 1});
    copy.from = &tensor;
    conversion_loss loss;
    for (index_t b = 0; b < copy.blocks(); ++b) copy.read(b, loss);
    return loss;
  };
  CHECK(load(same).elements == 0);
  CHECK(load(other).rounded > 0);
  const matrix<float> taken = same.weight().to_matrix(), wanted = coded->codes(0, 1, rows).to_matrix();
  bool equal = true;
  for (index_t i = 0; i < rows * cols; ++i)
    equal = equal && detail::bits_of(taken.data()[i]) == detail::bits_of(wanted.data()[i]);
  CHECK(equal);
}

TEST_CASE("tensor_copy: types that hold no weights are refused, and doubles that no float is near are counted",
          "[checkpoint]") {
  parameter<float> p({2, 2}, parameter_role::weight);
  tensor_copy copy(p, {"", {2, 2}, 0, 2, 1});
  const std::vector<std::int64_t> whole(4);
  tensor_info info{"t", data_type::i64, {2, 2}, std::as_bytes(std::span(whole))};
  CHECK(copy.obstacle(info).find("is I64") != std::string::npos);
  const std::vector<double> large{1, 2, 1e300, 4};
  info = {"t", data_type::f64, {2, 2}, std::as_bytes(std::span(large))};
  CHECK(copy.obstacle(info).empty());
  copy.from = &info;
  conversion_loss loss;
  copy.read_losses(0, 4, loss);
  CHECK(loss == conversion_loss{.elements = 4, .beyond = 1, .largest_beyond = 1e300});
}

TEST_CASE("tensor_copy: blocks of a grid format are taken as they are, where the storage is of it",
          "[checkpoint][gguf]") {
  using storage = grid_storage<iq3_xxs>;
  const index_t rows = 70, cols = 512;
  std::vector<std::byte> bytes(as_size(rows * 2 * iq3_xxs::block_bytes));
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 73 % 251);
  for (index_t b = 0; b < 2 * rows; ++b)
    iq3_xxs::set_half(bytes.data() + b * iq3_xxs::block_bytes,
                      round_to<float16>(0.01F * static_cast<float>(b % 5 + 1)));
  const auto type = static_cast<std::uint32_t>(ggml_type::iq3_xxs);
  const tensor_info tensor = detail::gguf_tensor("w", type, {rows, cols}, bytes);
  matrix<float> w(rows, cols);
  for (index_t b = 0; b < 2 * rows; ++b)
    decode_grid_block<iq3_xxs>(bytes.data() + b * iq3_xxs::block_bytes, w.data() + b * storage::block);

  encoded_matrix<storage> kept(rows - 1, cols);  // the rows from the second on
  tensor_copy copy(kept, {.tensor = "w", .shape = {rows, cols}, .offset = cols, .row_stride = cols});
  copy.from = &tensor;
  conversion_loss loss;
  for (index_t b = 0; b < copy.blocks(); ++b) copy.read(b, loss);
  CHECK(kept.to_matrix() == w.bottomRows(rows - 1));
  CHECK((detail::keeps_tensor<storage>::as_is(tensor) && !detail::keeps_tensor<grid_storage<iq3_s>>::as_is(tensor)));
}
