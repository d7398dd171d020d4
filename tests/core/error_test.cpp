#include <sluice/core/error.hpp>

#include <sluice/core/types.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("throw_invalid: puts words and numbers of any kind together", "[core][error]") {
  CHECK_THROWS_WITH(throw_invalid("E = ", 3, ", D = ", index_t(1) << 40, ", ", std::string("rate "), 0.5, ", ", true),
                    "sluice: E = 3, D = 1099511627776, rate 0.500000, 1");
  CHECK_THROWS_AS(throw_invalid("x"), std::invalid_argument);
}
