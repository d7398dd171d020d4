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
