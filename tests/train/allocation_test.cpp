#include "../allocation.hpp"

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/clip.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/sgd.hpp>

#include "../support.hpp"

using namespace sluice;
using test::allocations;

namespace {

auto make_layer() {
  moe_layer layer{top_k_router<float>{6, 12}, expert_bank<ffn<float>>{12, 6, 8}};
  initialize(layer, 1);
  ensure_gradients(layer);
  for_each_parameter(layer, [](const std::string&, parameter<float>& p) {
    for (float& g : p.gradient()) g = 0.5f;
  });
  return layer;
}

template <typename Object>
std::vector<float> numbers_of(Object& object) {
  std::vector<float> values;
  for_each_parameter(object, [&](const std::string&, parameter<float>& p) {
    values.insert(values.end(), p.value().begin(), p.value().end());
  });
  return values;
}

}  // namespace

TEST_CASE("optimizers: only the first step allocates, and prepare can take its place", "[train][alloc]") {
  const auto check = [](auto optimizer, bool prepared) {
    auto layer = make_layer();
    if (prepared)
      optimizer.prepare(layer);
    else
      optimizer.step(layer);
    const long calls = allocations.calls;
    const long mallocs = allocations.mallocs;
    for (int i = 0; i < 3; ++i) {
      clip_gradient_norm(layer, 1);
      optimizer.step(layer);
      zero_gradients(layer);
    }
    CHECK(allocations.calls == calls);
    CHECK(allocations.mallocs == mallocs);
  };
  for (const bool prepared : {false, true}) {
    check(adamw<float>{}, prepared);
    check(sgd<float>{{.momentum = 0.9}}, prepared);
    check(sgd<float>{}, prepared);
  }
}

TEST_CASE("optimizers: the n-th allocation fails, and a step is either taken or not", "[train][alloc]") {
  // The first step makes its state array by array. When memory runs out before that is done, a second try finishes and
  // ends with the same bits as a run without failure: no array has been updated twice.
  const auto check = [](auto make_optimizer) {
    auto expected_layer = make_layer();
    auto expected = make_optimizer();
    expected.step(expected_layer);
    const auto expected_values = numbers_of(expected_layer);
    const auto expected_state = numbers_of(expected);
    bool ran_out = true;
    long failures = 0;
    for (long n = 0; ran_out; ++n) {
      auto layer = make_layer();
      auto optimizer = make_optimizer();
      const auto before = numbers_of(layer);
      const long live = allocations.live;
      {
        const test::failing_allocation failing(n);
        try {
          optimizer.step(layer);
          ran_out = false;
        } catch (const std::bad_alloc&) {
        }
      }
      if (!ran_out) break;
      ++failures;
      CHECK(numbers_of(layer) == before);
      optimizer.step(layer);
      CHECK(numbers_of(layer) == expected_values);
      CHECK(numbers_of(optimizer) == expected_state);
      optimizer = make_optimizer();
      CHECK(allocations.live == live);
    }
    CHECK(failures > 20);
  };
  check([] { return adamw<float>{}; });
  check([] { return sgd<float>{{.momentum = 0.9}}; });
}
