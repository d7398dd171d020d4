#include <sluice/gate/token_id.hpp>

#include "../io/messages.hpp"
#include "gate_check.hpp"

using namespace sluice;

namespace {

routing_context<double> reading(const std::vector<index_t>& ids, const std::vector<index_t>& sequences = {}) {
  auto context = test::training_context<double>();
  context.token_ids = ids;
  context.sequences = sequences;
  return context;
}

template <id_window Window>
token_id_gate<double, Window> gate_of_numbers() {
  token_id_gate<double, Window> gate(2, 1, 4, 1);
  for (index_t id = 0; id < 4; ++id) gate.embeddings().data()[id] = std::pow(10.0, static_cast<double>(id));
  gate.centroids().data()[0] = 2;
  if constexpr (Window == id_window::causal)
    for (index_t i = 0; i < 5; ++i) gate.kernel().data()[i] = static_cast<double>(i + 1);
  return gate;
}

template <id_window Window>
std::vector<double> scores_of(const std::vector<index_t>& ids, const std::vector<index_t>& sequences = {},
                              const std::vector<std::uint8_t>& mask = {}) {
  auto context = reading(ids, sequences);
  context.token_mask = mask;
  const matrix<double> logits =
      test::score(gate_of_numbers<Window>(), matrix<double>(matrix<double>::Zero(static_cast<index_t>(ids.size()), 2)), context);
  return {logits.data(), logits.data() + logits.size()};
}

}  // namespace

TEST_CASE("token_id_gate: windows by hand, over sequences and padding", "[gate][token_id]") {
  using v = std::vector<double>;
  CHECK(scores_of<id_window::word>({3, 0, 1}) == v{2000, 2, 20});
  CHECK(scores_of<id_window::bigram>({3, 0, 1, 1}) == v{2000, 1001, 11, 20});
  CHECK(scores_of<id_window::bigram>({3, 0, 1, 1}, {0, 1, 4}) == v{2000, 2, 11, 20});
  CHECK(scores_of<id_window::bigram>({3, 99, 1, 1}, {}, {1, 0, 1, 1}) == v{2000, 0, 20, 20});
  CHECK(scores_of<id_window::causal>({3, 0, 1, 0, 0, 0, 0}) == v{2000, 4002, 6024, 8048, 10074, 102, 120});
  CHECK(scores_of<id_window::causal>({1, 0}, {0, 1, 1, 2}) == v{20, 2});
  CHECK(is_causal<token_id_gate<double>>);
  CHECK_FALSE(is_causal<token_id_gate<double, id_window::bigram>>);
}

TEST_CASE("token_id_gate: ids that it does not know are refused", "[gate][token_id]") {
  CHECK_THROWS_WITH(scores_of<id_window::word>({0, 4}), test::contains("token 1 has id 4") && test::contains("0 to 3"));
  CHECK_THROWS_WITH(scores_of<id_window::word>({-1}), test::contains("token 0 has id -1"));
  CHECK_THROWS_WITH(test::score(gate_of_numbers<id_window::word>(), matrix<double>(matrix<double>::Zero(2, 2))),
                    test::contains("token_ids"));
  CHECK_THROWS_WITH(token_id_gate<double>(2, 3, 0), test::contains("not 2, 3, 0 and 50"));
}

TEMPLATE_TEST_CASE_SIG("token_id_gate: gradients equal central differences", "[gate][token_id][gradient]",
                       ((id_window Window), Window), id_window::word, id_window::bigram, id_window::causal) {
  token_id_gate<double, Window> gate(3, 4, 6, 5);
  initialize(gate, 3);
  const std::vector<index_t> ids{5, 0, 2, 2, 5, 1, 1, 4, 2};
  const auto report = test::check_gate(gate, test::random_matrix<double>(9, 3, 4), 5, reading(ids, {0, 6, 9}));
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("token_id_gate: keeps every promise of a gate that NaN in a token does not concern", "[gate][token_id]") {
  std::vector<index_t> ids;
  for (index_t t = 0; t < 67; ++t) ids.push_back(t * t % 6);
  token_id_gate<double> gate(3, 4, 6, 5);
  initialize(gate, 3);
  gate_check_options<double> options;
  options.context.token_ids = ids;
  const auto report = sluice::check_gate(gate, options);
  INFO(report.describe());
  for (const auto& property : report.properties)
    if (property.name.find("NaN") == std::string::npos) CHECK(property.result != outcome::failed);
}
