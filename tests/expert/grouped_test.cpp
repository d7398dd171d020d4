#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/kernel/block_storage.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "reference_step.hpp"
#include "support.hpp"

#include <vector>

using namespace sluice;

namespace {

/// Large enough that work is handed out in many tasks, with odd sizes everywhere.
constexpr index_t tokens = 150, width = 83, hidden = 101, experts = 6;

template <typename Scalar, typename Expert>
auto make_layer() {
  moe_layer layer{top_k_router<Scalar>{width, experts, {.top_k = 3}}, expert_bank<Expert>{experts, width, hidden}};
  initialize(layer, 5);
  return layer;
}

/// An executor that says how many threads it has, so that tasks are cut for them.
class sized_threads : public test::shuffled_threads {
public:
  explicit sized_threads(int count) : test::shuffled_threads(count), count_(count) {}
  index_t concurrency() const { return count_; }
  static constexpr index_t smallest_work() { return executor_ref::smallest_work; }
  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    ++calls;
    test::shuffled_threads::parallel_for(n, body);
  }
  int calls = 0;  ///< how often tasks were handed out

private:
  int count_;
};

template <typename Layer>
struct step_result {
  matrix<typename Layer::scalar> y, dx;
  std::vector<matrix<typename Layer::scalar>> gradients;
};

template <typename Layer>
step_result<Layer> train_step(Layer layer, const executor_ref& executor) {
  using scalar = typename Layer::scalar;
  const matrix<scalar> x = test::random_matrix<scalar>(tokens, width, 1),
                       dy = test::random_matrix<scalar>(tokens, width, 2);
  step_result<Layer> r{matrix<scalar>(tokens, width), matrix<scalar>(tokens, width), {}};
  typename Layer::tape tape;
  routing_context<scalar> context;
  context.training = true;
  context.executor = executor;
  layer.forward(x, r.y, tape, context);
  layer.backward(dy, r.dx, tape);
  for_each_parameter(layer, [&](const std::string&, auto& p) { r.gradients.push_back(p.gradient_matrix()); });
  return r;
}

template <typename Layer>
void check_equal(const step_result<Layer>& a, const step_result<Layer>& b) {
  CHECK(test::same_bits(a.y, b.y));
  CHECK(test::same_bits(a.dx, b.dx));
  REQUIRE(a.gradients.size() == b.gradients.size());
  for (std::size_t i = 0; i < a.gradients.size(); ++i) CHECK(test::same_bits(a.gradients[i], b.gradients[i]));
}

}  // namespace

TEMPLATE_TEST_CASE("grouped experts: the same bits at 1, 2, 3 and 8 threads, forward and backward", "[expert][threads]",
                   float, double) {
  const auto check = [](const auto& layer) {
    const auto serial = train_step(layer, {});
    for (const int count : {1, 2, 3, 8}) {
      CAPTURE(count);
      sized_threads sized(count);
      check_equal(train_step(layer, sized), serial);
      test::shuffled_threads unsized(count);
      check_equal(train_step(layer, unsized), serial);
    }
  };
  check(make_layer<TestType, swiglu<TestType>>());
  check(make_layer<TestType, ffn<TestType, gelu>>());
}

TEST_CASE("grouped experts: a small batch is handed out once, expert by expert, with the same bits",
          "[expert][threads]") {
  const auto check = [](const auto& bank, std::vector<index_t> offsets, int threads, bool is_small) {
    using scalar = typename std::remove_cvref_t<decltype(bank)>::scalar;
    const index_t rows = offsets.back();
    const matrix<scalar> x = test::random_matrix<scalar>(rows, bank.inputs(), 1);
    matrix<scalar> y(rows, bank.outputs()), expected(rows, bank.outputs());
    typename std::remove_cvref_t<decltype(bank)>::tape tape;
    bank.forward(x, offsets, expected, tape, {});
    sized_threads pool(threads);
    const index_t capacity = tape.outputs.capacity();
    bank.forward(x, offsets, y, tape, pool);
    CHECK(test::same_bits(y, expected));
    CHECK(tape.outputs.capacity() == capacity);  // whichever way the first call went
    CHECK((pool.calls == 1) == is_small);
  };
  expert_bank<swiglu<float>> gated{4, 64, 150, {.outputs = 53, .bias = true}};
  expert_bank<ffn<double, gelu>> plain{4, 64, 150, {.bias = true}};
  initialize(gated, 1);
  initialize(plain, 2);
  const auto codes = gated.stored_as<int8_blocks>();
  const auto half = gated.stored_as<bfloat16_storage>();
  const std::vector<index_t> even{0, 5, 5, 11, 16}, one_has_most{0, 1, 2, 3, 30};
  for (const int threads : {2, 3}) {
    CAPTURE(threads);
    const bool largest_fits = 6 * threads <= 16;
    check(gated, even, threads, largest_fits);
    check(plain, even, threads, largest_fits);
    check(codes, even, threads, largest_fits);
    check(half, even, threads, largest_fits);
    check(gated, one_has_most, threads, false);
    check(gated, {0, 300, 600, 900, 1200}, threads, false);
  }
}

TEMPLATE_TEST_CASE("grouped experts: forward and backward equal the readable reference", "[expert]", float, double) {
  auto layer = make_layer<TestType, swiglu<TestType>>();
  const matrix<TestType> x = test::random_matrix<TestType>(tokens, width, 1);
  const matrix<TestType> dy = test::random_matrix<TestType>(tokens, width, 2);
  // Terms of size up to 4, three experts, dot products of width + hidden.
  test::check_against_reference(layer, x, dy, 3 * test::bound<TestType>(width + hidden, 4),
                                test::bound<TestType>(tokens + width + hidden, 32));
}

TEMPLATE_TEST_CASE("grouped experts: a token has the same bits alone and in any batch", "[expert]", float, double) {
  const auto layer = make_layer<TestType, swiglu<TestType>>();
  const matrix<TestType> x = test::random_matrix<TestType>(tokens, width, 1);
  const auto infer = [&](const matrix<TestType>& in) {
    matrix<TestType> y(in.rows(), width);
    typename std::remove_cvref_t<decltype(layer)>::workspace workspace;
    layer.forward(in, y, workspace);
    return y;
  };
  const matrix<TestType> all = infer(x);
  for (const index_t n : {1, 2, 13, 40, 149}) CHECK(test::same_bits(infer(x.bottomRows(n)), all.bottomRows(n)));
}

TEMPLATE_TEST_CASE("grouped experts: every token at one expert, rows in several chunks", "[expert]", float, double) {
  expert_bank<swiglu<TestType>> bank{4, 9, 11};
  initialize(bank, 3);
  const index_t n = 2 * kernel::chunk_blocks<full_precision<TestType>> * kernel::tile_rows + 3;
  const matrix<TestType> x = test::random_matrix<TestType>(n, 9, 1);
  const std::vector<index_t> offsets{0, 0, n, n, n};
  matrix<TestType> y(n, 9), alone(n, 9), saved(n, 0);
  typename decltype(bank)::tape tape;
  bank.forward(x, offsets, y, tape, {});
  bank.expert(1).forward(x, alone, saved);
  CHECK(test::same_bits(y, alone));
  CHECK(test::largest_difference(y.bottomRows(1), [&] {
          matrix<TestType> last(1, 9);
          bank.expert(1).forward(x.bottomRows(1), last, saved);
          return last;
        }()) == 0);
}

TEST_CASE("grouped experts: sixteen-bit banks equal float banks of the rounded weights, bit for bit", "[expert]") {
  const auto check = [](const auto& bank, auto storage) {
    const auto half = bank.template stored_as<decltype(storage)>();
    const auto rounded = half.template stored_as<full_precision<float>>();
    const matrix<float> x = test::random_matrix<float>(60, width, 1);
    const std::vector<index_t> offsets{0, 7, 7, 60};
    matrix<float> y(60, width), z(60, width);
    typename std::remove_cvref_t<decltype(half)>::tape half_tape;
    typename std::remove_cvref_t<decltype(rounded)>::tape tape;
    half.forward(x, offsets, y, half_tape, {});
    rounded.forward(x, offsets, z, tape, {});
    CHECK(test::same_bits(y, z));
  };
  expert_bank<geglu<float>> gated{3, width, hidden, {.bias = true, .hidden_scale = true}};
  expert_bank<ffn<float, silu>> plain{3, width, hidden, {.bias = true}};
  initialize(gated, 1);
  initialize(plain, 2);
  check(gated, bfloat16_storage());
  check(gated, float16_storage());
  check(plain, bfloat16_storage());
}

TEMPLATE_TEST_CASE("grouped experts: workspace_bytes says what a call will take", "[expert]", float, double) {
  auto layer = make_layer<TestType, swiglu<TestType>>();
  const matrix<TestType> x = test::random_matrix<TestType>(tokens, width, 1);
  matrix<TestType> y(tokens, width), dx(tokens, width);
  constexpr auto number = static_cast<index_t>(sizeof(TestType));
  typename decltype(layer)::workspace workspace;
  const index_t inference = layer.workspace_bytes(3 * tokens);
  layer.forward(x, y, workspace);
  const auto& used = workspace.experts;
  CHECK(used.x[0].bytes() + used.h.bytes() + number * (used.outputs.capacity() + used.z[0].capacity()) +
            used.active.capacity() * index_t(sizeof(used.active[0])) ==
        inference);
  typename decltype(layer)::tape tape;
  const index_t training = layer.workspace_bytes(3 * tokens, true);
  layer.forward(x, y, tape);
  layer.backward(x, dx, tape);
  const auto& kept = tape.experts;
  index_t numbers = (kept.x[0].bytes() + kept.h.bytes()) / number + kept.outputs.capacity() + kept.dy.capacity() +
                    kept.dy_lanes.capacity() + kept.dweight.capacity();
  for (std::size_t m = 0; m < 2; ++m) numbers += kept.z[m].capacity() + kept.dz_lanes[m].capacity();
  CHECK(number * numbers <= training);
  CHECK(5 * training <= 6 * number * numbers);
}

TEST_CASE("grouped experts: experts of unlike hidden widths in one bank", "[expert]") {
  std::vector<swiglu<double>> unlike;
  for (const index_t h : {5, 40, 17}) unlike.emplace_back(8, h);
  expert_bank<swiglu<double>> bank(std::move(unlike));
  initialize(bank, 4);
  const matrix<double> x = test::random_matrix<double>(30, 8, 1), dy = test::random_matrix<double>(30, 8, 2);
  const std::vector<index_t> offsets{0, 11, 12, 30};
  matrix<double> y(30, 8), dx(30, 8);
  decltype(bank)::tape tape;
  ensure_gradients(bank);
  bank.forward(x, offsets, y, tape, {});
  bank.backward(x, offsets, dy, dx, tape, {});
  for (index_t e = 0; e < 3; ++e) {
    const index_t begin = offsets[static_cast<std::size_t>(e)], n = offsets[static_cast<std::size_t>(e) + 1] - begin;
    swiglu<double> alone = bank.expert(e);
    zero_gradients(alone);
    matrix<double> own_y(n, 8), own_dx(n, 8), saved(n, 0);
    alone.forward(x.middleRows(begin, n), own_y, saved);
    alone.backward(x.middleRows(begin, n), dy.middleRows(begin, n), saved, own_dx);
    CHECK(test::same_bits(y.middleRows(begin, n), own_y));
    CHECK(test::same_bits(dx.middleRows(begin, n), own_dx));
    CHECK(test::same_bits(bank.expert(e).gate().gradient_matrix(), alone.gate().gradient_matrix()));
    CHECK(test::same_bits(bank.expert(e).down().gradient_matrix(), alone.down().gradient_matrix()));
  }
}
