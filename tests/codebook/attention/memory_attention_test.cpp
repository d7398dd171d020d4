#include <sluice/codebook/attention/memory_attention.hpp>

#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../../support.hpp"

using namespace sluice;

static_assert(TrainableLayer<averaged_memory<float>> && TrainableLayer<memory_attention<float>>);

namespace {

memory_attention<double> memory_case() {
  memory_attention<double> m{4, {.heads = 1, .key_width = 3, .value_width = 2, .codes = 5, .block = 4, .window = 2}};
  initialize(m, 3);
  m.attention().codebook(0).codebook().table().assign(test::random_matrix<double>(5, 3, 9));
  return m;
}

}  // namespace

TEST_CASE("averaged_memory: the recurrence, a sequence at a time, hidden tokens left out", "[codebook][attention]") {
  averaged_memory<double> memory(2);
  memory.decay().fill([](index_t c) { return c == 0 ? 0.0 : std::log(3.0); });  // a = 0.5 and 0.75
  matrix<double> x(4, 2), y(4, 2);
  x << 1, 4, 5, 8, quiet_nan<double>(), 0, 2, 4;
  const std::vector<index_t> borders{0, 1, 4};
  averaged_memory<double>::workspace ws;
  memory.forward(x, y, ws, {.sequences = borders});
  matrix<double> expected(4, 2);
  expected << 0.5, 1, 2.5, 2, 0, 0, 2.25, 2.5;
  CHECK(is_nan(y(2, 0)));
  y.row(2).setZero();
  CHECK(test::largest_difference(y, expected) < 1e-15);
}

TEST_CASE("averaged_memory: every promise of a layer, exact gradients among them", "[codebook][attention][conformance]") {
  const auto report = sluice::check_layer(averaged_memory<double>(5), {.seed = 5});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == outcome::passed);
}

TEST_CASE("memory_attention: every promise of a layer", "[codebook][attention][conformance]") {
  const auto report = sluice::check_layer(memory_case(), {.seed = 5});
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("memory_attention: what comes later changes nothing, and gates at the ends are the parts", "[codebook][attention]") {
  auto m = memory_case();
  const matrix<double> x = test::random_matrix<double>(13, 4, 1);
  matrix<double> y(13, 4), first(7, 4), summary(13, 4), attended(13, 4);
  memory_attention<double>::workspace ws;
  m.forward(x, y, ws);
  m.forward(x.topRows(7), first, ws);
  CHECK(test::same_bits(y.topRows(7), first));
  m.gate().fill([](index_t) { return 0.0; });
  m.gate_bias().fill([](index_t) { return -800.0; });
  m.forward(x, y, ws);
  CHECK(test::largest_difference(y, x) < 1e-15);
  m.gate_bias().fill([](index_t) { return 800.0; });
  m.forward(x, y, ws);
  averaged_memory<double>::workspace memory_ws;
  quantized_attention<double>::workspace attention_ws;
  m.memory().forward(x, summary, memory_ws);
  m.attention().forward(summary, attended, attention_ws);
  CHECK(test::largest_difference(y, attended) < 1e-15);
}

TEST_CASE("memory_attention: gradients of what no choice stands before are those of differences", "[codebook][attention][gradient]") {
  auto m = memory_case();
  const matrix<double> x = test::random_matrix<double>(9, 4, 1), dy = test::random_matrix<double>(9, 4, 2);
  matrix<double> y(9, 4), dx(9, 4);
  memory_attention<double>::tape tape;
  m.forward(x, y, tape);
  zero_gradients(m);
  m.backward(dy, dx, tape);
  const auto objective = [&] {
    memory_attention<double>::workspace ws;
    m.forward(x, y, ws);
    return (y.array() * dy.array()).sum();
  };
  for (auto* p : {&m.gate(), &m.gate_bias(), &m.attention().value(), &m.attention().output()})
    for (index_t i = 0; i < p->size(); i += 3)
      CHECK(p->gradient()[as_size(i)] == Approx(test::slope_at(p->data()[i], objective)).margin(1e-7));
}
