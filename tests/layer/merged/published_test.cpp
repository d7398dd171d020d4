#include <sluice/layer/merged/published.hpp>

#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../../support.hpp"

using namespace sluice;

TEST_CASE("published merged layers: adapters that start at nothing, and the identity in front of maps",
          "[layer][merged][published]") {
  auto adapters = published::smear<double>(6, 2, 4);
  initialize(adapters, 84);
  const matrix<double> x = test::random_matrix<double>(5, 6, 85);
  matrix<double> y(5, 6);
  decltype(adapters)::workspace workspace;
  adapters.forward(x, y, workspace);
  CHECK(y.isZero(0));

  auto tokens = published::meo_of_tokens<double>(6, 4, 3, 2, 5);
  auto alone = published::meo<double>(6, 4, 3, 2);
  initialize(tokens, 86);
  matrix<double> a(5, 4), b(5, 4);
  decltype(tokens)::workspace of_tokens;
  decltype(alone)::workspace of_sequence;
  tokens.forward(x, a, of_tokens);
  tokens.layer<1>().forward(x, b, of_sequence);
  CHECK(test::same_bits(a, b));
}

TEST_CASE("published merged layers: keep every promise of a layer", "[layer][merged][published][conformance]") {
  const std::vector<index_t> borders{0, 5, 9, 9, 37};
  const matrix<double> features = test::random_matrix<double>(4, 3, 87);
  layer_check_options<double> options{.seed = 88, .gradient_tokens = 9};
  options.context.groups = borders;
  const auto check_it = [&](auto layer) {
    initialize(layer, 89);
    // What starts at zero would hide the rest.
    std::uint64_t seed = 90;
    for_each_parameter(layer, [&](const std::string&, auto& p) {
      const matrix<double> numbers = test::random_matrix<double>(p.rows(), p.cols(), ++seed) * 0.3;
      p.assign(numbers);
    });
    const auto report = check_layer(layer, options);
    INFO(report.describe());
    CHECK(report.passed());
  };
  check_it(published::smear<double>(6, 3, 4));
  check_it(published::meo_of_tokens<double>(6, 4, 3, 2, 5, true));
  options.context.group_features = features;
  check_it(published::mann<double>(5, 4, 3, 3, 3, 2));
}
