#include <sluice/kernel/near_rivals.hpp>

#include "../support.hpp"

using namespace sluice;

TEMPLATE_TEST_CASE("near_rivals: going through them finds those of the definition, in order", "[kernel][near_rivals]",
                   float, double) {
  using S = TestType;
  const index_t count = GENERATE(1, 7, 16, 17, 70);
  for (const double shift : {-10.0, -1.0, 0.0, 0.5, 8.0})
    for (const double jitter : {0.0, 0.01, 0.1, 0.4, 0.5, 0.7}) {
      std::vector<S> logits(static_cast<std::size_t>(count));
      for (index_t i = 0; i < count; ++i)
        logits[static_cast<std::size_t>(i)] = static_cast<S>(shift + std::sin(37.0 * static_cast<double>(i)));
      const S largest = *std::max_element(logits.begin(), logits.end());
      // One exactly on the border, as far as numbers go.
      logits[0] = largest > 0 ? largest * S(1 - 2 * jitter) : largest;
      std::vector<index_t> wanted, found;
      for (index_t i = 0; i < count; ++i)
        if (kernel::is_near_rival(logits[static_cast<std::size_t>(i)], largest, S(jitter))) wanted.push_back(i);
      kernel::for_each_near_rival(logits.data(), count, largest, S(jitter), [&](index_t e) { found.push_back(e); });
      CHECK(found == wanted);
    }
}

TEMPLATE_TEST_CASE("near_rivals: of an infinite largest its equals are the rivals", "[kernel][near_rivals]", float,
                   double) {
  using S = TestType;
  const S infinity = std::numeric_limits<S>::infinity();
  for (const S largest : {infinity, -infinity}) {
    std::vector<S> logits(21, largest > 0 ? S(3) : largest);
    logits[2] = logits[19] = largest;
    std::vector<index_t> wanted, found;
    for (index_t e = 0; e < 21; ++e)
      if (kernel::is_near_rival(logits[as_size(e)], largest, S(0.1))) wanted.push_back(e);
    kernel::for_each_near_rival(logits.data(), 21, largest, S(0.1), [&](index_t e) { found.push_back(e); });
    CHECK(found == wanted);
    CHECK(found.size() == (largest > 0 ? 2U : 21U));
  }
}
