#include <sluice/layer/multilinear/multilinear_layer.hpp>

#include <sluice/gate/batch_normalized.hpp>
#include <sluice/gate/centred.hpp>
#include <sluice/train/initialize.hpp>

#include "io/messages.hpp"
#include "layer/layer_promises.hpp"
#include "layer/saved_layer.hpp"

using namespace sluice;

namespace {

template <typename Gate>
using entmax_gates = dense_entmax_router<double, Gate>;
using centred = entmax_gates<centred_gate<linear_gate<double>>>;
using batched = entmax_gates<batch_normalized_gate<linear_gate<double>>>;

/// What a map gives for gates a_0, a_1 and tokens z.
template <typename Contraction>
matrix<double> multilinear_output(const multilinear_map<double, Contraction>& map,
                                  const std::vector<matrix<double>>& gates, const matrix<double>& z) {
  typename multilinear_map<double, Contraction>::memory memory;
  matrix<double> y = matrix<double>::Constant(z.rows(), map.outputs(), quiet_nan<double>());
  const auto gate = [&](index_t l) {
    return const_matrix_map<double>(gates[as_size(l)].data(), z.rows(), gates[as_size(l)].cols());
  };
  map.forward(gate, z, y, memory, false, {});
  return y;
}

/// Linear in each argument: the sum over experts of what unit vectors give is what all together do.
template <typename Contraction>
void check_is_contraction(const std::vector<index_t>& experts, Contraction contraction, index_t core = 0) {
  multilinear_map<double, Contraction> map(experts, 4, 3, contraction, {.bias = true, .core = core});
  initialize(map, 5);
  map.factor(map.levels()).bias().fill([](index_t i) { return 0.3 - 0.2 * double(i); });
  std::vector<matrix<double>> gates;
  for (std::size_t l = 0; l < experts.size(); ++l) gates.push_back(test::random_matrix<double>(1, experts[l], 6 + l));
  const matrix<double> z = test::random_matrix<double>(1, 4, 9);
  matrix<double> expected = matrix<double>::Zero(1, 3);
  std::vector<matrix<double>> unit = gates;
  const auto add = [&](auto&& self, std::size_t l, double weight) -> void {
    if (l == experts.size()) {
      expected += weight * multilinear_output(map, unit, z);
      return;
    }
    for (index_t n = 0; n < experts[l]; ++n) {
      unit[l].setZero();
      unit[l](0, n) = 1;
      self(self, l + 1, weight * gates[l](0, n));
    }
  };
  add(add, 0, 1);
  CHECK(test::largest_difference(multilinear_output(map, gates, z), expected) <= test::bound<double>(60, 8.0));
  CHECK(expected.cwiseAbs().maxCoeff() > 0.01);
}

}  // namespace

TEST_CASE("multilinear_map: numbers by hand", "[layer][multilinear]") {
  multilinear_map<double> map({2}, 2, 2, elementwise_contraction{1, 2}, {.bias = false});
  matrix<double> u1(2, 2), u2(2, 2), u3(2, 2), a(1, 2), z(1, 2), dy(1, 2);
  u1 << 1, 2, 0, 1;
  u2 << 1, 0, 1, 1;
  u3 << 1, -1, 2, 0;
  a << .25, .75;
  z << 2, -1;
  dy << 1, -1;
  map.factor(0).weight().assign(matrix<double>(u1.transpose()));
  map.factor(1).weight().assign(matrix<double>(u2.transpose()));
  map.factor(2).weight().assign(u3);
  multilinear_map<double>::memory memory;
  matrix<double> y(1, 2), da(1, 2), dz(1, 2), expected(1, 2);
  const auto gate = [&](index_t) { return const_matrix_map<double>(a.data(), 1, 2); };
  map.forward(gate, z, y, memory, true, {});
  expected << 1.5, .5;
  CHECK(test::largest_difference(y, expected) <= test::bound<double>(4, 2.0));
  ensure_gradients(map);
  const auto dgate = [&](index_t) { return matrix_map<double>(da.data(), 1, 2); };
  map.backward(gate, z, dy, dgate, dz, memory, {});
  expected << 1, 1;
  CHECK(test::largest_difference(da, expected) <= test::bound<double>(4, 2.0));
  expected << -.25, -1.5;
  CHECK(test::largest_difference(dz, expected) <= test::bound<double>(4, 2.0));
}

TEST_CASE("multilinear_map: any experts are exact with a large enough rank", "[layer][multilinear]") {
  // Two linear experts [3, 2]: U1 = I (x) 1, U2 = [W_1 | W_2], U3 = [I | I].
  const matrix<double> w = test::random_matrix<double>(6, 2, 3);  // rows (expert, input), columns outputs
  multilinear_map<double> map({2}, 3, 2, elementwise_contraction{1, 4}, {.bias = false});
  map.factor(0).weight().fill([](index_t i) { return i / 2 / 2 == i % 2 ? 1.0 : 0.0; });
  map.factor(1).weight().fill([&](index_t i) { return w(i / 3 / 2 * 3 + i % 3, i / 3 % 2); });
  map.factor(2).weight().fill([](index_t i) { return i / 4 == i % 2 ? 1.0 : 0.0; });
  const matrix<double> a = test::random_matrix<double>(5, 2, 4), z = test::random_matrix<double>(5, 3, 5);
  const matrix<double> first = z * w.topRows(3), second = z * w.bottomRows(3);
  const matrix<double> expected = a.col(0).asDiagonal() * first + a.col(1).asDiagonal() * second;
  CHECK(test::largest_difference(multilinear_output(map, {a}, z), expected) <= test::bound<double>(8, 8.0));
}

TEST_CASE("multilinear_map: every contraction is linear in every expert", "[layer][multilinear]") {
  check_is_contraction({3, 2}, elementwise_contraction{2, 5});
  check_is_contraction({3}, outer_contraction{{2, 3}});
  check_is_contraction({3, 2}, outer_contraction{{2, 3, 2}}, 4);
  check_is_contraction({4}, ring_contraction{{2, 3, 2}});
  check_is_contraction({3, 2}, ring_contraction{{1, 3, 2, 4}});
}

TEST_CASE("multilinear_layer: every promise of a layer", "[layer][multilinear][conformance]") {
  test::check_layer_promises(
      multilinear_layer<centred, ring_contraction, gelu, layer_norm<double>>{
          {centred{5, 4}, centred{5, 3}}, {{4, 3}, 5, 6, ring_contraction{{2, 3, 1, 2}}}},
      11);
  using tucker = multilinear_map<double, outer_contraction>;
  multilinear_layer<batched, outer_contraction> layer{
      {batched{5, 3}},
      tucker{{3}, 5, 4, outer_contraction{{2, 3}}, {.bias = true, .core = 2}},
      tucker{{3}, 4, 5, outer_contraction{{2, 2}}}};
  test::check_layer_promises(layer, 12);
  initialize(layer, 14);
  CHECK(test::file_keeps(layer, 15));
  // Running numbers move after a step, and are what inference reads.
  const matrix<double> x = test::random_matrix<double>(8, 5, 16);
  matrix<double> y(8, 5), before(8, 5), after(8, 5);
  decltype(layer)::tape tape;
  decltype(layer)::workspace workspace;
  layer.forward(x, before, workspace);
  layer.forward(x, y, tape);
  layer.after_step(tape);
  layer.forward(x, after, workspace);
  CHECK_FALSE(test::same_bits(before, after));
}

TEST_CASE("multilinear_layer: begins as the paper does", "[layer][multilinear]") {
  multilinear_map<double, ring_contraction> map({3, 2}, 4, 5, ring_contraction{{2, 2, 2, 2}});
  map.initialize_alike(3);
  const matrix<double> first = map.factor(0).weight().to_matrix(), further = map.factor(1).weight().to_matrix();
  for (index_t n = 0; n < 3; ++n) CHECK((first(1, n) == 0 && first(2, n) == 0 && first(0, n) != first(3, n)));
  matrix<double> neutral(4, 2);
  neutral << 1, 1, 0, 0, 0, 0, 1, 1;
  CHECK(test::same_bits(further, neutral));
  CHECK(map.factor(2).weight().to_matrix().cwiseAbs().maxCoeff() <= 0.5);
}

TEST_CASE("multilinear_layer: refuses what does not fit", "[layer][multilinear]") {
  using layer_type = multilinear_layer<centred>;
  CHECK_THROWS_WITH((layer_type{{centred{5, 4}}, {{4, 2}, 5, 6, elementwise_contraction{2, 7}}}),
                    test::contains("2 levels of gates has 1 routers"));
  CHECK_THROWS_WITH((layer_type{{centred{5, 4}}, {{3}, 5, 6, elementwise_contraction{1, 7}}}),
                    test::contains("level 0 has 3 experts, its router 4"));
  CHECK_THROWS_WITH((layer_type{{centred{4, 3}}, {{3}, 5, 6, elementwise_contraction{1, 7}}}),
                    test::contains("width 4"));
  CHECK_THROWS_WITH((multilinear_map<double>{{3}, 5, 6, elementwise_contraction{2, 7}}), test::contains("3 vectors"));
}
