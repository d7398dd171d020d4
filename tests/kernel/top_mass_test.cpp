#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_mass.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// Ids of the largest scores, and whether a prefix of them that ends before the last has the mass already.
template <typename Scalar>
std::vector<index_t> best_of_mass(const std::vector<Scalar>& scores, Scalar mass, index_t most) {
  const auto count = static_cast<index_t>(scores.size());
  std::vector<Scalar> weights(scores.size());
  kernel::softmax(scores.data(), weights.data(), count);
  std::vector<index_t> ids(static_cast<std::size_t>(most), -1);
  const index_t n = kernel::top_mass(weights.data(), scores.data(), count, mass, most, ids.data());
  ids.resize(static_cast<std::size_t>(n));
  double sum = 0;
  for (const index_t i : ids) sum += static_cast<double>(weights[static_cast<std::size_t>(i)]);
  CHECK((n == most || sum >= static_cast<double>(mass) * (1 - 1e-6)));
  return ids;
}

}  // namespace

TEMPLATE_TEST_CASE("top_mass: the best scores in the order of top_k, with the mass or as many as there may be",
                   "[kernel][top_mass]", float, double) {
  using S = TestType;
  const index_t count = GENERATE(1, 2, 7, 16, 17, 64, 100);
  for (const double spread : {0.0, 1.0, 30.0})
    for (const double mass : {-1.0, 0.0, 0.3, 0.9, 1.0})
      for (const index_t most : {index_t(1), (count + 1) / 2, count}) {
        std::vector<S> scores(static_cast<std::size_t>(count));
        for (index_t i = 0; i < count; ++i)
          scores[static_cast<std::size_t>(i)] = static_cast<S>(spread * std::sin(37.0 * static_cast<double>(i)));
        const auto ids = best_of_mass<S>(scores, S(mass), most);
        std::vector<index_t> wanted(ids.size());
        kernel::top_k(scores.data(), count, static_cast<index_t>(ids.size()), wanted.data());
        CHECK(ids == wanted);
      }
}

TEST_CASE("top_mass: few are found where few have the mass", "[kernel][top_mass]") {
  std::vector<double> scores(1000);
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = std::sin(37.0 * static_cast<double>(i));
  scores[500] = 20;
  CHECK(best_of_mass<double>(scores, 0.9, 1000) == std::vector<index_t>{500});
  scores[300] = 20;
  CHECK(best_of_mass<double>(scores, 0.9, 1000) == std::vector<index_t>{300, 500});
  const double infinity = std::numeric_limits<double>::infinity();
  scores[400] = infinity;
  CHECK(best_of_mass<double>(scores, 0.9, 1000) == std::vector<index_t>{400});
}
