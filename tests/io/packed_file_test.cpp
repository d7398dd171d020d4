// Files whose panels are mapped: what comes back, who owns it, and what is refused.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/io/packed_file.hpp>
#include <sluice/kernel/block_storage.hpp>
#include <sluice/kernel/format/formats.hpp>
#include <sluice/kernel/format/grid_storage.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"
#include "temporary_folder.hpp"

#include <set>
#include <string>
#include <utility>

using namespace sluice;

namespace {

using packed_choice = mixed_storage<int8_blocks, int4_blocks, bfloat16_storage>;
using packed_layer = moe_layer<top_k_router<float>, expert_bank<swiglu<float, packed_choice>>>;

packed_layer fresh_layer() {
  return packed_layer(top_k_router<float>{40, 3, {.top_k = 2}},
                      expert_bank<swiglu<float, packed_choice>>{3, index_t(40), index_t(50), {.bias = true}});
}
packed_layer filled_layer() {
  moe_layer layer{top_k_router<float>{40, 3, {.top_k = 2}},
                  expert_bank<swiglu<float>>{3, index_t(40), index_t(50), {.bias = true}}};
  initialize(layer, 4);
  return layer.stored_as<packed_choice>([](index_t e, int m) -> packed_choice {
    if (e == 0) return int4_blocks();
    return m == 2 ? packed_choice(bfloat16_storage()) : packed_choice(int8_blocks());
  });
}

matrix<float> packed_outputs(const packed_layer& layer) {
  const matrix<float> x = test::random_matrix<float>(9, 40, 1);
  matrix<float> y(9, 40);
  packed_layer::workspace workspace;
  layer.forward(x, y, workspace);
  return y;
}

std::shared_ptr<const safetensors_reader> opened(const std::vector<std::byte>& bytes) {
  return std::make_shared<const safetensors_reader>(safetensors_reader::from_bytes(bytes, "test"));
}
std::string packed_refusal(const safetensors_writer& file) {
  const std::vector<std::byte> bytes = file.to_bytes();
  linear_map<packed_choice> map(20, 33);
  try {
    load_packed(map, opened(bytes), {.prefix = "w"});
  } catch (const file_error& error) {
    // Nothing has changed.
    CHECK_THROWS_AS(check_initialized(map), std::invalid_argument);
    return error.what();
  }
  return {};
}
tensor_info packed_tensor(const std::string& type, std::span<const std::byte> bytes) {
  return {.name = "w", .dtype = data_type::other, .shape = {20, 33}, .bytes = bytes, .other_type = type};
}
const std::string packed_lanes = std::to_string(kernel::simd_width<float>);

}  // namespace

TEST_CASE("packed files: a layer of several storages comes back with every bit, reading the file's own pages", "[io]") {
  const test::temporary_folder folder;
  const packed_layer saved = filled_layer();
  save_packed(saved, folder / "layer", {{"note", "yes"}});
  packed_layer loaded = fresh_layer();
  {
    const auto file = std::make_shared<const safetensors_reader>(folder / "layer");
    CHECK(file->metadata().at("note") == "yes");
    CHECK(file->at("experts.0.gate").type_name() == "int4_blocks.L" + packed_lanes);
    CHECK(file->at("experts.1.down").dtype == data_type::bf16);
    load_packed(loaded, file);
    const auto* const gate = loaded.bank().expert(0).first_map(0).get_if<int4_blocks>();
    REQUIRE(gate != nullptr);
    CHECK(gate->panel(0) == file->at("experts.0.gate").bytes.data());  // a mapping, no copy
  }
  std::filesystem::remove(folder / "layer");  // the layer keeps it
  CHECK(loaded.bank().expert(1).last_map().get_if<bfloat16_storage>() != nullptr);
  CHECK(loaded.bank().expert(1).first_map(1).get_if<int8_blocks>() != nullptr);
  CHECK(test::same_bits(packed_outputs(loaded), packed_outputs(saved)));
  // A copy has its own memory where it is written to, and the mapping stays as it was.
  packed_layer copy = loaded;
  copy.bank().expert(0).gate().fill([](index_t) { return 1.0F; });
  CHECK(!test::same_bits(packed_outputs(copy), packed_outputs(loaded)));
  CHECK(test::same_bits(packed_outputs(loaded), packed_outputs(saved)));
}

TEST_CASE("packed files: matrices of one storage, and plain files", "[io]") {
  linear_map<int4_blocks> map(20, 33), loaded(20, 33), plain(20, 33);
  map.weight().assign(test::random_matrix<float>(20, 33, 1));
  safetensors_writer packed, numbers;
  add_packed(packed, map, "w");
  add_parameters(numbers, map, "w");
  const auto packed_bytes = packed.to_bytes(), number_bytes = numbers.to_bytes();
  load_packed(loaded, opened(packed_bytes), {.prefix = "w"});
  load_packed(plain, opened(number_bytes), {.prefix = "w"});
  CHECK(std::ranges::equal(loaded.weight().value(), map.weight().value()));
  CHECK(std::ranges::equal(plain.weight().value(), map.weight().value()));
  linear_map<int4_blocks> moved = std::move(loaded);
  CHECK(std::ranges::equal(moved.weight().value(), map.weight().value()));
  moved.weight().make_room();  // as it was, and no longer the file's
  CHECK(std::ranges::equal(moved.weight().value(), map.weight().value()));
  // Where a number of two bytes stands before them, panels lie at an odd place and are copied.
  const std::vector<std::byte> two(2);
  safetensors_writer shifted;
  shifted.add("v", {1}, data_type::bf16, two);
  add_packed(shifted, map, "w");
  const auto shifted_bytes = shifted.to_bytes();
  linear_map<int4_blocks> copied(20, 33);
  load_packed(copied, opened(shifted_bytes), {.prefix = "w", .ignored = {"v"}});
  CHECK(std::ranges::equal(copied.weight().value(), map.weight().value()));
  CHECK(reinterpret_cast<std::uintptr_t>(copied.weight().data()) % 64 == 0);
  CHECK_THROWS_WITH(add_packed(packed, linear_map<int4_blocks>(3, 3), "v"), Catch::Contains("nobody has set"));
}

TEST_CASE("packed files: every format has a name of its own", "[io]") {
  const auto kept = [](auto storage) {
    using type = decltype(storage);
    encoded_matrix<type> saved(20, 256), loaded(20, 256);
    saved.assign(test::random_matrix<float>(20, 256, 11));
    safetensors_writer file;
    file.add(tensor_info{.name = "w",
                         .dtype = data_type::other,
                         .shape = {20, 256},
                         .bytes = saved.value(),
                         .other_type = detail::packed_type<type>()});
    const std::vector<std::byte> bytes = file.to_bytes();  // which the map reads on
    linear_map<type> map(20, 256);
    load_packed(map, opened(bytes), {.prefix = "w"});
    CHECK(test::same_bits(map.weight().to_matrix(), saved.to_matrix()));
    return std::string(detail::packed_name<type>());
  };
  const std::set<std::string> names{kept(coded_storage<q5_0_format>()),    kept(coded_storage<q5_1_format>()),
                                    kept(coded_storage<iq4_nl_format>()),  kept(coded_storage<iq4_xs_format>()),
                                    kept(coded_storage<nvfp4_format>()),   kept(coded_storage<scaled_nvfp4_format>()),
                                    kept(coded_storage<ternary_format>()), kept(grid_storage<iq3_s>()),
                                    kept(grid_storage<iq2_xxs>()),         kept(int8_blocks())};
  CHECK(names.size() == 10);
  CHECK(names.contains("iq2_xxs"));
}

TEST_CASE("packed files: other lanes, formats and sizes are refused with a sentence", "[io]") {
  linear_map<int4_blocks> map(20, 33);
  map.weight().assign(test::random_matrix<float>(20, 33, 1));
  const std::span<const std::byte> panels = map.weight().value();
  const auto refusal = [&](const std::string& type, std::span<const std::byte> bytes) {
    safetensors_writer file;
    file.add(packed_tensor(type, bytes));
    return packed_refusal(file);
  };
  CHECK(refusal("int4_blocks.L" + packed_lanes, panels).empty());
  CHECK_THAT(refusal("int4_blocks.L64", panels),
             Catch::Contains("another instruction set") && Catch::Contains("L" + packed_lanes));
  CHECK_THAT(refusal("int4_blocks.L", panels), Catch::Contains("another instruction set"));
  CHECK_THAT(refusal("int3_blocks.L" + packed_lanes, panels),
             Catch::Contains("is int3_blocks.L" + packed_lanes + ", the model reads plain numbers, int8_blocks.L"));
  CHECK_THAT(refusal("int4_blocks.L" + packed_lanes, panels.first(panels.size() - 1)),
             Catch::Contains("panels of [20, 33] take"));
  CHECK_THAT(refusal("int8_blocks.L" + packed_lanes, panels), Catch::Contains("panels of [20, 33] take"));
  safetensors_writer file;
  file.add({.name = "w",
            .dtype = data_type::other,
            .shape = {20, 32},
            .bytes = panels,
            .other_type = "int4_blocks.L" + packed_lanes});
  CHECK_THAT(packed_refusal(file), Catch::Contains("shape is [20, 32], the model needs [20, 33]"));
  CHECK_THAT(packed_refusal(safetensors_writer()), Catch::Contains("missing"));
}

TEST_CASE("maps that nobody has set take no memory and refuse to run", "[io]") {
  const expert_bank<swiglu<float, int8_blocks>> bank{2, index_t(8), index_t(8)};
  CHECK(bank.expert(0).last_map().weight().data() == nullptr);
  CHECK(test::same_bits(bank.expert(0).last_map().weight().to_matrix(), matrix<float>::Zero(8, 8)));
  expert_bank<swiglu<float, int8_blocks>>::tape tape;
  matrix<float> x = matrix<float>::Ones(1, 8), y(1, 8);
  CHECK_THROWS_WITH(bank.forward(x, std::vector<index_t>{0, 0, 1}, y, tape, {}),
                    "sluice: expert 1 has weights that nobody has set");
}
