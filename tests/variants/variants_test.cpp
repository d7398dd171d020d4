// One program, one layer for several instruction sets, by sluice_add_variants.
#include <sluice/core/variant.hpp>

#include "../support.hpp"
#include "agreement.hpp"

#include <make_layer_variants.hpp>
#include <set>
#include <typeinfo>

using namespace sluice;

namespace {

/// Calls f(variant, layer) for every variant that this machine runs.
template <typename F>
void for_each_available(F&& f) {
  for (const auto& variant : make_layer_variants) {
    CAPTURE(variant.isa);
    if (variant.available())
      f(variant, variant.entry(7));
    else
      WARN("left out, because this machine does not run it: " << variant.isa);
  }
}

}  // namespace

TEST_CASE("variants: forward and backward agree on every instruction set", "[variants]") {
  std::vector<border::results> all;
  for_each_available([&](const auto&, auto layer) {
    all.push_back(layer->training_step(131));
    CHECK(border::disagreement(all.front(), all.back(), 131) <= 1);
  });
}

TEST_CASE("variants: each runs the code of its own instruction set", "[variants]") {
  for_each_available([](const auto& variant, auto layer) {
    // A cast across the border, between two interfaces that know nothing of each other.
    const auto* named = dynamic_cast<const border::named*>(layer.get());
    REQUIRE(named != nullptr);
    CHECK(named->isa().starts_with(variant.isa));
  });
}

TEST_CASE("variants: exceptions are caught outside by their type", "[variants]") {
  for_each_available([](const auto& variant, auto layer) {
    CHECK_THROWS_AS(layer->forward_with_wrong_shapes(), std::invalid_argument);
    CHECK_THROWS_AS(variant.entry(0), std::invalid_argument);  // by a constructor
    CHECK_THROWS_AS(layer->fail(), border::failure);
    try {
      layer->fail();
    } catch (const border::failure& e) {
      CHECK(e.number == 42);
      CHECK(typeid(e) == typeid(border::failure));
    }
  });
}

TEST_CASE("variants: a static object of an inline function exists once a variant", "[variants]") {
  border::counter() = 100;
  for_each_available([](const auto&, auto layer) {
    const int first = layer->count();
    CHECK(first < 100);
    CHECK(layer->count() == first + 1);
  });
  CHECK(border::counter() == 100);
}

TEST_CASE("variants: the best is the last that runs", "[variants]") {
  const auto& best = best_variant(make_layer_variants);
  CHECK(best.available());
  for (const auto* later = &best + 1; later < std::end(make_layer_variants); ++later) CHECK_FALSE(later->available());
  CHECK(make_layer_variants[0].available());  // the architecture's baseline

  const isa_variant<layer_factory> none[] = {{"riscv", make_layer_variants[0].entry}};
  CHECK_THROWS_AS(best_variant(none), std::invalid_argument);
  CHECK_THROWS_WITH(best_variant(none), Catch::Matchers::Contains("riscv"));
  const isa_variant<layer_factory> two[] = {make_layer_variants[0], none[0]};
  CHECK(&best_variant(two) == &two[0]);
}

TEST_CASE("variants: every step of the ladder of instruction sets needs the one below", "[variants]") {
  const char* const ladder[] = {"sse2", "sse4", "avx2", "avx512", "avx512vnni"};
  for (std::size_t i = 1; i < std::size(ladder); ++i)
    if (cpu_runs(ladder[i])) CHECK(cpu_runs(ladder[i - 1]));
  CHECK_FALSE(cpu_runs(""));
  CHECK_FALSE(cpu_runs("avx"));
}
