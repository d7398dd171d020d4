#include <sluice/codebook/code_usage.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("code_usage: perplexity counts codes that share the work", "[codebook][usage]") {
  code_usage usage(4);
  CHECK(usage.perplexity() == Approx(1));  // nothing was chosen
  const std::vector<index_t> one{2, 2, 2, no_code}, all{0, 1, 2, 3};
  usage.add(one.data(), 4);
  CHECK(usage.total() == 3);
  CHECK(usage.perplexity() == Approx(1));
  CHECK(usage.utilisation() == 0.25);
  usage.clear(4);
  usage.add(all.data(), 4);
  CHECK(usage.perplexity() == Approx(4));
  CHECK(usage.used() == 4);
  code_usage both(4);
  both.add(usage);
  both.add(usage);
  CHECK(both.total() == 8);
  CHECK(both.count(3) == 2);
  CHECK_THROWS_AS(both.add(code_usage(5)), std::invalid_argument);
}
