#include <sluice/io/model_file.hpp>
#include <sluice/kernel/block_storage.hpp>
#include <sluice/kernel/linear_map.hpp>

#include "failing_allocation.hpp"
#include "file_cases.hpp"
#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

using namespace sluice;

namespace {

/// A part with parameters of its own, to give a model nested names.
struct gate {
  parameter<double> bias{{2}, parameter_role::vector};
  parameter<double> live{{2}, parameter_role::state};

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("bias", self.bias);
    visit("live", self.live);
  }
};

/// Parameters of both precisions, of one to three axes, one of them empty.
template <typename Scalar>
struct model {
  parameter<Scalar> weight{{2, 2, 3}, parameter_role::weight};
  gate router;
  parameter<Scalar> none{{0, 3}, parameter_role::weight};

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight);
    visit("router", self.router);
    visit("none", self.none);
  }
};

/// Every parameter filled with numbers first, first + 1, ...
template <typename Scalar>
model<Scalar> numbered(int first) {
  model<Scalar> m;
  for_each_parameter(m, [&](const std::string&, auto& p) {
    for (auto& value : p.value()) value = static_cast<std::remove_reference_t<decltype(value)>>(first++);
  });
  return m;
}

/// All values, one after the other.
template <typename Model>
std::vector<double> values_of(const Model& m) {
  std::vector<double> values;
  for_each_parameter(
      m, [&](const std::string&, const auto& p) { values.insert(values.end(), p.value().begin(), p.value().end()); });
  return values;
}

template <typename Model>
void load_from(Model& m, const safetensors_writer& file, const load_options& options = {}) {
  const std::vector<std::byte> bytes = file.to_bytes();
  load_parameters(safetensors_reader::from_bytes(bytes, "memory"), m, options);
}

struct pair_model {
  parameter<float> a{{1}, parameter_role::weight};
  parameter<float> b{{1}, parameter_role::weight};

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("a", self.a);
    visit("b", self.b);
  }
};

/// Two parameters of one name.
struct ambiguous_model {
  parameter<float> a{{1}, parameter_role::weight};
  parameter<float> b{{1}, parameter_role::weight};

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("w", self.a);
    visit("w", self.b);
  }
};

}  // namespace

TEST_CASE("model files: weights in codes are saved as numbers and come back as the same codes", "[io]") {
  linear_map<int8_blocks> map(19, 45), loaded(19, 45);
  map.weight().fill([](index_t i) { return std::sin(static_cast<float>(i)) * std::exp2(static_cast<float>(i % 5)); });
  safetensors_writer file;
  add_parameters(file, map);
  load_from(loaded, file);
  CHECK(std::ranges::equal(loaded.weight().value(), map.weight().value()));
}

TEMPLATE_TEST_CASE("save and load: a model comes back with every value, also its state", "[io]", float, double) {
  const test::temporary_folder folder;
  const model<TestType> saved = numbered<TestType>(1);
  save(saved, folder / "model", {{"steps", "400"}});
  model<TestType> loaded;
  load(loaded, folder / "model");
  CHECK(values_of(loaded) == values_of(saved));
  CHECK(values_of(loaded).size() == 16);
  CHECK(!loaded.weight.has_gradient());

  const safetensors_reader file(folder / "model");
  CHECK(file.metadata() == std::map<std::string, std::string>{{"steps", "400"}});
  CHECK(file.at("weight").shape == std::vector<std::int64_t>{2, 2, 3});
  CHECK(file.at("weight").dtype == data_type_of<TestType>);
  CHECK(file.at("router.live").dtype == data_type::f64);
  CHECK(file.at("none").shape == std::vector<std::int64_t>{0, 3});
}

TEST_CASE("load: float, double, half and bfloat16 files fit a model of either precision", "[io]") {
  const std::vector<double> two{1.5, -2};
  const std::vector<float> twelve_floats{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const std::vector<std::uint16_t> halves{0x3C00, 0x4000};   // 1, 2
  const std::vector<std::uint16_t> bfloats{0x3F80, 0x4000};  // 1, 2
  safetensors_writer file;
  file.add("weight", {2, 2, 3}, twelve_floats);
  file.add("router.bias", {2}, data_type::f16, std::as_bytes(std::span(halves)));
  file.add("router.live", {2}, data_type::bf16, std::as_bytes(std::span(bfloats)));
  file.add("none", {0, 3}, std::span<const double>());
  const std::vector<double> expected{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2, 1, 2};
  model<float> f;
  load_from(f, file);
  CHECK(values_of(f) == expected);
  model<double> d;
  load_from(d, file);
  CHECK(values_of(d) == expected);
}

TEST_CASE("load: one error lists all that is missing, different and left over, and nothing has changed", "[io]") {
  using test::contains;
  const std::vector<float> twelve(12);
  const std::vector<std::int64_t> integers(2);
  const std::vector<double> two{7, 7};
  safetensors_writer file;
  file.add("weight", {2, 3, 2}, twelve);
  file.add("router.bias", {2}, integers);
  file.add("none", {0, 3}, std::span<const float>());
  file.add("experts.0.up", {2}, two);
  file.add("experts.1.up", {2}, two);

  model<float> m = numbered<float>(1);
  const std::vector<double> before = values_of(m);
  CHECK_THROWS_AS(load_from(m, file), file_error);
  CHECK_THROWS_WITH(load_from(m, file),
                    contains("file \"memory\"") && contains("5 problems") &&
                        contains("different \"weight\": shape is [2, 3, 2], the model needs [2, 2, 3]") &&
                        contains("different \"router.bias\": is I64, cannot be read as F64") &&
                        contains("missing \"router.live\": the model needs shape [2]") &&
                        contains("left over \"experts.0.up\"") && contains("left over \"experts.1.up\""));
  CHECK(values_of(m) == before);
}

TEST_CASE("load: a value that does not fit is found before the first is copied", "[io]") {
  const std::vector<float> one{5};
  const std::vector<double> too_large{1e300};
  safetensors_writer file;
  file.add("a", {1}, one);
  file.add("b", {1}, too_large);
  pair_model m;
  CHECK_THROWS_WITH(load_from(m, file), test::contains("different \"b\": element 0 is 1e+300"));
  CHECK(m.a.value()[0] == 0);
}

TEST_CASE("load: names of a prefix are looked at, others are not", "[io]") {
  const model<float> first = numbered<float>(1);
  const model<float> second = numbered<float>(100);
  safetensors_writer file;
  add_parameters(file, first, "layers.1");
  add_parameters(file, second, "layers.10");
  model<float> loaded;
  load_from(loaded, file, {.prefix = "layers.10"});
  CHECK(values_of(loaded) == values_of(second));
  load_from(loaded, file, {.prefix = "layers.1"});
  CHECK(values_of(loaded) == values_of(first));
  CHECK_THROWS_WITH(load_from(loaded, file), test::contains("missing \"weight\""));

  const std::vector<float> one{1};
  file.add("layers.1.extra", {1}, one);
  CHECK_THROWS_WITH(load_from(loaded, file, {.prefix = "layers.1"}), test::contains("left over \"layers.1.extra\""));
  CHECK_NOTHROW(load_from(loaded, file, {.prefix = "layers.1", .ignored = {"layers.1.extra"}}));
  CHECK_NOTHROW(load_from(loaded, file, {.prefix = "layers.10"}));
}

TEST_CASE("save and load: two parameters of one name are refused", "[io]") {
  const test::temporary_folder folder;
  ambiguous_model m;
  CHECK_THROWS_AS(save(m, folder / "model"), std::invalid_argument);
  CHECK(folder.file_count() == 0);
  const std::vector<float> one{1};
  safetensors_writer file;
  file.add("w", {1}, one);
  CHECK_THROWS_WITH(load_from(m, file), test::contains("ambiguous \"w\""));
}

TEST_CASE("load: a file of many strangers gives a message of readable length", "[io]") {
  const std::vector<float> one{1};
  safetensors_writer file;
  for (int i = 0; i < 5000; ++i) file.add("stranger." + std::to_string(i), {1}, one);
  model<float> m;
  std::string message;
  try {
    load_from(m, file);
  } catch (const file_error& error) {
    message = error.what();
  }
  CHECK_THAT(message, test::contains("5004 problems") && test::contains("only the first 200"));
  CHECK(message.size() < 30'000);
}

TEST_CASE("load: whichever allocation fails, the model is unchanged", "[io]") {
  const test::temporary_folder folder;
  const model<float> saved = numbered<float>(1);
  save(saved, folder / "model");
  const std::filesystem::path path = folder / "model";
  model<float> m = numbered<float>(50);
  const std::vector<double> before = values_of(m);
  bool unchanged = true;
  const long failures =
      test::fail_each_allocation([&] { load(m, path); }, [&] { unchanged = unchanged && values_of(m) == before; });
  CHECK(unchanged);
  CHECK(failures > 20);
  CHECK(values_of(m) == values_of(saved));
}

TEST_CASE("save: whichever allocation fails, the old file stays and nothing is left beside it", "[io]") {
  const test::temporary_folder folder;
  const std::filesystem::path path = folder / "model";
  save(numbered<float>(1), path);
  const std::string before = test::read_bytes(path);
  const model<float> m = numbered<float>(50);
  bool unchanged = true;
  const long failures = test::fail_each_allocation(
      [&] { save(m, path); },
      [&] { unchanged = unchanged && test::read_bytes(path) == before && folder.file_count() == 1; });
  CHECK(unchanged);
  CHECK(failures > 20);
  CHECK(test::read_bytes(path) != before);
}
