#include <sluice/core/error.hpp>

#include <sluice/core/types.hpp>

#include "../support.hpp"

#include <cmath>
#include <limits>

using namespace sluice;

TEST_CASE("throw_invalid: puts words and numbers of any kind together", "[core][error]") {
  CHECK_THROWS_WITH(throw_invalid("E = ", 3, ", D = ", index_t(1) << 40, ", ", std::string("rate "), 0.5, ", ", true),
                    "sluice: E = 3, D = 1099511627776, rate 0.5, 1");
  CHECK_THROWS_AS(throw_invalid("x"), std::invalid_argument);
}

TEST_CASE("throw_invalid: says which number it is, in few digits", "[core][error]") {
  CHECK_THROWS_WITH(throw_invalid(0.1F, " ", 1e-9, " ", 1e30, " ", 0.0, " ", -2.0), "sluice: 0.1 1e-09 1e+30 0 -2");
  const double above = std::nextafter(1.0, 2.0);
  CHECK_THROWS_WITH(throw_invalid(above), "sluice: 1.0000000000000002");
  CHECK_THROWS_WITH(throw_invalid(std::nextafter(1.0F, 2.0F)), "sluice: 1.00000012");
  CHECK_THROWS_WITH(throw_invalid(std::numeric_limits<double>::infinity()), "sluice: inf");
  CHECK_THROWS_WITH(throw_invalid(std::numeric_limits<float>::quiet_NaN()), "sluice: nan");
}
