// Experts whose matrices differ in storage, chosen at run time: every combination equals its maps one by one, bit for
// bit.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/kernel/block_storage.hpp>
#include <sluice/kernel/mixed_map.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"

#include <string>
#include <vector>

using namespace sluice;

namespace {

using mixed = mixed_storage<full_precision<float>, bfloat16_storage, int8_blocks, int4_blocks>;
using mixed_swiglu = swiglu<float, mixed>;
constexpr index_t mixed_width = 45, mixed_hidden = 70, mixed_experts = 9;

mixed mixed_choice(index_t number) {
  switch (number % 4) {
    case 0:
      return full_precision<float>();
    case 1:
      return bfloat16_storage();
    case 2:
      return int8_blocks();
    default:
      return int4_blocks();
  }
}
/// Nine experts: gate and up alike, both numbers, both 8 bits, one of each; last maps of all kinds.
mixed mixed_choice_of(index_t expert, int matrix) {
  constexpr index_t choices[mixed_experts][3] = {{0, 0, 0}, {2, 2, 2}, {0, 2, 3}, {2, 0, 1}, {3, 1, 2},
                                                 {3, 3, 2}, {1, 0, 0}, {2, 3, 0}, {1, 1, 1}};
  return mixed_choice(choices[expert][matrix]);
}

expert_bank<swiglu<float>> mixed_origin(bool bias = true) {
  expert_bank<swiglu<float>> bank{mixed_experts, mixed_width, mixed_hidden, {.bias = bias}};
  initialize(bank, 3);
  if (bias)
    for (index_t e = 0; e < mixed_experts; ++e)
      bank.expert(e).gate_bias().fill([](index_t i) { return static_cast<float>(i % 5) * 0.1F; });
  return bank;
}

/// x W^T of one map alone.
matrix<float> mixed_product(const linear_map<mixed>& map, const matrix<float>& x) {
  matrix<float> y(x.rows(), map.outputs()), none;
  map.visit([&](const auto& one) {
    using storage = typename std::remove_cvref_t<decltype(one)>::storage;
    linear_expert<float, storage> expert(map.inputs(), map.outputs());
    expert.last_map() = one;
    expert.forward(x, y, none);
  });
  return y;
}

/// One expert, map by map.
matrix<float> mixed_by_maps(mixed_swiglu& expert, const matrix<float>& x) {
  using vector = kernel::simd<float>;
  constexpr index_t lanes = kernel::simd_width<float>;
  const matrix<float> gate = mixed_product(expert.first_map(0), x), up = mixed_product(expert.first_map(1), x);
  matrix<float> h(x.rows(), expert.hidden());
  for (index_t i = 0; i < h.rows(); ++i)
    for (index_t p = 0; p < h.cols(); p += lanes) {
      std::array<float, as_size(3 * lanes)> row{};
      const index_t count = std::min(lanes, h.cols() - p);
      std::copy_n(&gate(i, p), count, row.data());
      std::copy_n(&up(i, p), count, row.data() + lanes);
      const std::array<vector, 2> z{kernel::load(row.data()), kernel::load(row.data() + lanes)};
      kernel::store<float>(row.data() + 2 * lanes, std::as_const(expert).activate(p, z));
      std::copy_n(row.data() + 2 * lanes, count, &h(i, p));
    }
  return mixed_product(expert.last_map(), h);
}

matrix<float> mixed_forward(const expert_bank<mixed_swiglu>& bank, const matrix<float>& x,
                            const std::vector<index_t>& offsets, const executor_ref& executor = {}) {
  matrix<float> y(x.rows(), bank.outputs());
  expert_bank<mixed_swiglu>::tape tape;
  bank.forward(x, offsets, y, tape, executor);
  return y;
}

}  // namespace

TEST_CASE("mixed storages: a bank's experts equal their maps one by one, bit for bit", "[expert][storage]") {
  auto bank = mixed_origin().stored_as<mixed>(mixed_choice_of);
  CHECK(bank.expert(2).first_map(1).get_if<int8_blocks>() != nullptr);
  CHECK(bank.expert(2).last_map().format().number() == 3);
  const matrix<float> x = test::random_matrix<float>(60, mixed_width, 1);
  const std::vector<index_t> offsets{0, 3, 20, 21, 28, 28, 40, 43, 59, 60};
  const matrix<float> y = mixed_forward(bank, x, offsets);
  for (index_t e = 0; e < mixed_experts; ++e) {
    INFO("expert " << e);
    const index_t first = offsets[as_size(e)], rows = offsets[as_size(e) + 1] - first;
    matrix<float> expected = mixed_by_maps(bank.expert(e), x.middleRows(first, rows));
    expected.rowwise() += Eigen::Map<const Eigen::RowVectorXf>(bank.expert(e).output_bias(), mixed_width);
    CHECK(test::same_bits(y.middleRows(first, rows), expected));
    // A row has the same bits alone, and where its expert is all there is.
    if (rows == 0) continue;
    std::vector<index_t> alone(offsets.size(), 0);
    std::fill(alone.begin() + e + 1, alone.end(), 1);
    CHECK(test::same_bits(mixed_forward(bank, x.row(first), alone), y.row(first)));
  }
  for (const int threads : {2, 3, 7}) {
    test::shuffled_threads pool(threads);
    CHECK(test::same_bits(mixed_forward(bank, x, offsets, pool), y));
  }
}

TEST_CASE("mixed storages: gradients pass all of them, what is in full precision learns", "[expert][storage]") {
  // No activations of 8 bits: everything is as in the same experts widened to floats.
  const auto exact = [](index_t expert, int matrix) {
    return mixed_choice(std::array<index_t, 4>{0, 1, 3, 0}[as_size(expert + matrix) % 4]);
  };
  auto bank = mixed_origin().stored_as<mixed>(exact);
  auto widened = bank.stored_as<full_precision<float>>();
  const matrix<float> x = test::random_matrix<float>(50, mixed_width, 1),
                      dy = test::random_matrix<float>(50, mixed_width, 2);
  const std::vector<index_t> offsets{0, 9, 9, 20, 30, 31, 40, 44, 49, 50};
  const auto step = [&](auto& some) {
    typename std::remove_cvref_t<decltype(some)>::tape tape;
    matrix<float> y(50, mixed_width), dx(50, mixed_width);
    ensure_gradients(some);
    some.forward(x, offsets, y, tape, {});
    some.backward(x, offsets, dy, dx, tape, {});
    return dx;
  };
  CHECK(test::same_bits(step(bank), step(widened)));
  index_t learned = 0;
  for (index_t e = 0; e < mixed_experts; ++e)
    for (int m = 0; m < 3; ++m) {
      const auto& map = m == 2 ? bank.expert(e).last_map() : bank.expert(e).first_map(m);
      const auto& other = m == 2 ? widened.expert(e).last_map() : widened.expert(e).first_map(m);
      const auto* numbers = map.get_if<full_precision<float>>();
      CHECK((numbers != nullptr) == (exact(e, m).number() == 0));
      if (numbers == nullptr) continue;
      CHECK(test::same_bits(numbers->weight().gradient_matrix(), other.weight().gradient_matrix()));
      ++learned;
    }
  CHECK(learned == 13);
  const matrix<float> frozen = bank.expert(1).gate().to_matrix(), before = bank.expert(0).gate().to_matrix();
  adamw<float> optimizer;
  optimizer.step(bank);
  CHECK(test::same_bits(bank.expert(1).gate().to_matrix(), frozen));
  CHECK(!test::same_bits(bank.expert(0).gate().to_matrix(), before));
}

TEST_CASE("mixed storages: where gate and up read x differently each has the gradient of its own",
          "[expert][storage]") {
  auto bank = mixed_origin(false).stored_as<mixed>(mixed_choice_of);
  const matrix<float> x = test::random_matrix<float>(40, mixed_width, 1),
                      dy = test::random_matrix<float>(40, mixed_width, 2);
  const std::vector<index_t> offsets{0, 0, 0, 20, 40, 40, 40, 40, 40, 40};
  matrix<float> y(40, mixed_width), dx(40, mixed_width);
  expert_bank<mixed_swiglu>::tape tape;
  ensure_gradients(bank);
  bank.forward(x, offsets, y, tape, {});
  bank.backward(x, offsets, dy, dx, tape, {});
  // Expert 2 has up, expert 3 gate in 8 bits and the other one in floats. dW = dz^T x, with dz of plain matrices.
  for (const index_t e : {2, 3}) {
    auto& expert = bank.expert(e);
    const matrix<float> rows = x.middleRows((e - 2) * 20, 20);
    const matrix<float> a = mixed_product(expert.first_map(0), rows), b = mixed_product(expert.first_map(1), rows);
    const matrix<float> dh = dy.middleRows((e - 2) * 20, 20) * expert.down().to_matrix();
    matrix<float> dz(20, mixed_hidden);
    for (index_t i = 0; i < dz.size(); ++i) {
      const float s = 1 / (1 + std::exp(-a.data()[i]));
      dz.data()[i] = dh.data()[i] * (e == 2 ? b.data()[i] * s * (1 + a.data()[i] * (1 - s)) : a.data()[i] * s);
    }
    const auto* learned = expert.first_map(e == 2 ? 0 : 1).get_if<full_precision<float>>();
    REQUIRE(learned != nullptr);
    const matrix<float> expected = dz.transpose() * rows;
    CHECK(test::largest_difference(learned->weight().gradient_matrix(), expected) <=
          test::bound<float>(20 + mixed_width, expected.cwiseAbs().maxCoeff()));
  }
}

TEST_CASE("mixed storages: every promise of a layer", "[expert][storage]") {
  expert_bank<ffn<float>> floats{4, index_t(12), index_t(37)};
  moe_layer<top_k_router<float>, expert_bank<ffn<float>>> origin{top_k_router<float>{12, 4, {.top_k = 2}},
                                                                 std::move(floats)};
  initialize(origin, 2);
  const auto choice = [](index_t e, int m) { return mixed_choice(e + 2 * m); };
  const auto layer = origin.stored_as<mixed>(choice);
  // Wrappers hand the choice on.
  const auto around = residual_layer{origin}.stored_as<mixed>(choice);
  for (index_t e = 0; e < 4; ++e)
    CHECK(around.layer().bank().expert(e).last_map().format().number() == (e + 2) % 4);
  const auto report = check_layer(layer);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("mixed storages: once warm, no routing needs more memory", "[expert][storage]") {
  const auto bank = mixed_origin().stored_as<mixed>(mixed_choice_of);
  const matrix<float> x = test::random_matrix<float>(30, mixed_width, 1);
  matrix<float> y(30, mixed_width);
  expert_bank<mixed_swiglu>::tape tape;
  bank.prepare(tape, 30, false);
  const auto memory = [&] {
    return std::array{tape.x[0].bytes(), tape.x[1].bytes(), tape.h.bytes(), tape.h_rows.capacity()};
  };
  const auto before = memory();
  CHECK(tape.x[0].bytes() + tape.x[1].bytes() + tape.h.bytes() + index_t(sizeof(float)) * tape.h_rows.capacity() <=
        bank.workspace_bytes(30, false));
  for (index_t e = 0; e < mixed_experts; ++e) {  // all rows to one
    std::vector<index_t> offsets(as_size(mixed_experts) + 1, 0);
    std::fill(offsets.begin() + e + 1, offsets.end(), 30);
    bank.forward(x, offsets, y, tape, {});
    CHECK(memory() == before);
  }
}

TEST_CASE("mixed storages: what a map says and refuses", "[expert][storage]") {
  linear_map<mixed> map(20, 33, int4_blocks());
  CHECK(map.inputs() == 33);
  CHECK(map.outputs() == 20);
  CHECK(map.panels() == map.get_if<int4_blocks>()->panels());
  CHECK_THROWS_WITH(map.stored_as<mixed>(bfloat16_storage()), Catch::Contains("nobody has set"));
  map.weight().assign(test::random_matrix<float>(20, 33, 1));
  const auto rounded = map.stored_as<mixed>(bfloat16_storage());
  CHECK(test::same_bits(rounded.to_matrix(),
                        map.get_if<int4_blocks>()->stored_as<bfloat16_storage>().weight().to_matrix()));
  CHECK_THROWS_WITH((map = linear_map<int8_blocks>(20, 32)), "sluice: a map [20, 33] cannot become one [20, 32]");
  map = linear_map<int8_blocks>(20, 33);
  CHECK(map.format().number() == 2);
  // In a union experts are counted through all banks.
  expert_union banks{mixed_origin(), mixed_origin()};
  const auto small = banks.stored_as<mixed>([](index_t e, int) { return mixed_choice(e < mixed_experts ? 2 : 3); });
  CHECK(small.bank<0>().expert(8).last_map().format().number() == 2);
  CHECK(small.bank<1>().expert(0).last_map().format().number() == 3);
  // Without a choice the first of the list, which changes nothing.
  CHECK(test::same_bits(mixed_origin().stored_as<mixed>().expert(1).gate().to_matrix(),
                        mixed_origin().expert(1).gate().to_matrix()));
}
