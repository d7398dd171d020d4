#include <sluice/layer/branches/shortcut.hpp>

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/layer/beside.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/layer/token_mixer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "layer/layer_promises.hpp"

using namespace sluice;

namespace {

/// Stands for attention: y_t = w * (x_0 + .. + x_t), channel by channel.
class sum_so_far : public token_mixer<sum_so_far, double> {
  using base = token_mixer<sum_so_far, double>;
  friend base;

public:
  static constexpr bool causal = true;

  explicit sum_so_far(index_t width) : weight_({1, width}, parameter_role::weight, initial_values::normal(0.2)) {}

  index_t inputs() const noexcept { return weight_.cols(); }
  index_t workspace_bytes(index_t rows, bool = false) const { return rows * inputs() * 8; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
  }

private:
  template <typename Memory>
  void mix(tokens_in<double> x, tokens_out<double> y, Memory&, const context_type&) const {
    matrix<double> sum = matrix<double>::Zero(1, inputs());
    for (index_t t = 0; t < x.rows(); ++t) {
      sum += x.row(t);
      y.row(t) = sum.cwiseProduct(weight_.map());
    }
  }
  void mix_backward(tokens_in<double> dy, tokens_out<double> dx, tape& t) {
    matrix<double> after = matrix<double>::Zero(1, inputs());
    for (index_t i = dy.rows() - 1; i >= 0; --i) {
      after += dy.row(i);
      dx.row(i) = after.cwiseProduct(weight_.map());
      weight_.gradient_map() += after.cwiseProduct(t.kept.x().row(i));
    }
  }

  parameter<double> weight_;
};

const index_t width_of_block = 6;

auto routed() {
  return moe_layer{top_k_router<double>{width_of_block, 4, {.top_k = 1, .weights = weighting::pre}},
                   expert_bank<swiglu<double>>{4, width_of_block, 5}};
}
rms_norm<double> block_norm() { return rms_norm<double>{width_of_block, {.epsilon = 1e-6}}; }
template <typename Layer>
auto sublayer(Layer layer) {
  return residual_layer{normalized_layer{std::move(layer), block_norm()}};
}
auto dense_part() { return dense_layer{swiglu<double>{width_of_block, 7}}; }

/// Pos-2: the mixture skips the dense part, attention and the shared expert.
auto whole_block() {
  return shortcut_layer{routed(), block_norm(), dense_part(),
                        sequence{sublayer(sum_so_far(width_of_block)), sublayer(dense_part())}};
}

}  // namespace

TEST_CASE("shortcut: what is skipped adds to x and the mixture adds to that", "[layer][branches]") {
  auto layer = whole_block();
  static_assert(decltype(layer)::mixes_tokens && decltype(layer)::causal);
  initialize(layer, 6);
  const matrix<double> x = test::random_matrix<double>(9, width_of_block, 7);
  matrix<double> n(9, width_of_block), h(9, width_of_block), skipped(9, width_of_block), added(9, width_of_block),
      y = x;
  decltype(layer)::workspace workspace;
  layer.forward(y, y, workspace);
  rms_norm<double>::tape norm_tape;
  layer.norm().forward(x, n, norm_tape, {});
  std::remove_cvref_t<decltype(layer.first())>::workspace first;
  std::remove_cvref_t<decltype(layer.rest())>::workspace rest;
  std::remove_cvref_t<decltype(layer.layer())>::workspace mixture;
  layer.first().forward(n, h, first);
  h += x;
  layer.rest().forward(h, skipped, rest);
  layer.layer().forward(n, added, mixture);
  CHECK(test::same_bits(y, matrix<double>(added + skipped)));
}

TEST_CASE("shortcut: where nothing else happens it is a mixture beside a shared expert", "[layer][branches]") {
  const auto nothing = [] { return dense_layer{zero_expert<double>{width_of_block}}; };
  // Attn' = 0 and MLP = 0, so Pos-1 and Pos-2 read the same tokens as the layer without a shortcut.
  shortcut_layer one{routed(), block_norm(), nothing(), sublayer(dense_part())};
  shortcut_layer two{routed(), block_norm(), nothing(), sequence{residual_layer{nothing()}, sublayer(dense_part())}};
  beside_layer plain{normalized_layer{routed(), block_norm()}, sublayer(dense_part())};
  const auto copy_values = [](auto& from, auto& to) {
    std::vector<std::span<const double>> values;
    for_each_parameter(from, [&](const std::string&, auto& p) { values.push_back(p.value()); });
    std::size_t next = 0;
    for_each_parameter(to, [&](const std::string&, auto& p) {
      std::copy(values.at(next).begin(), values.at(next).end(), p.value().begin());
      ++next;
    });
    CHECK(next == values.size());
  };
  initialize(one, 8);
  copy_values(one, two);
  copy_values(one, plain);  // the mixture, its norm, the shared expert: in this order in all of them
  const matrix<double> x = test::random_matrix<double>(9, width_of_block, 9);
  matrix<double> y(9, width_of_block), other(9, width_of_block);
  decltype(one)::workspace a;
  decltype(two)::workspace b;
  decltype(plain)::workspace c;
  one.forward(x, y, a);
  two.forward(x, other, b);
  CHECK(test::same_bits(y, other));
  plain.forward(x, other, c);
  CHECK(test::same_bits(y, other));
}

TEST_CASE("shortcut: converts, counts its memory, and refuses other widths", "[layer][branches]") {
  auto layer = whole_block();
  initialize(layer, 6);
  const auto small = layer.stored_as<bfloat16_storage>();
  CHECK(small.experts() == 4);
  CHECK(layer.workspace_bytes(9) >
        layer.layer().workspace_bytes(9) + layer.first().workspace_bytes(9) + layer.rest().workspace_bytes(9));
  CHECK_THROWS_WITH((shortcut_layer{routed(), block_norm(), dense_layer{swiglu<double>{5, 7}}, dense_part()}),
                    Catch::Matchers::Contains("maps 6 -> 6, the first sublayer 5 -> 5, the rest 6 -> 6"));
  CHECK_THROWS_WITH((shortcut_layer{routed(), rms_norm<double>{5}, dense_part(), dense_part()}),
                    Catch::Matchers::Contains("rows of width 6; the norm is for width 5"));
}

TEST_CASE("shortcut: every promise of a layer", "[layer][branches][conformance]") {
  test::check_layer_promises(whole_block(), 11);
}
