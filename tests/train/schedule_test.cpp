#include <sluice/train/schedule.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("schedules: constant", "[train][schedule]") {
  const constant_schedule schedule(0.25);
  CHECK(schedule(0) == 0.25);
  CHECK(schedule(1000000) == 0.25);
}

TEST_CASE("schedules: warm-up climbs to the peak, decay ends at the floor", "[train][schedule]") {
  const schedule_options o{.peak = 2, .floor = 0.5, .warmup = 4, .steps = 12};
  const linear_schedule linear(o);
  const cosine_schedule cosine(o);
  for (index_t s = 0; s < 4; ++s) {
    CHECK(linear(s) == Approx(0.5 * static_cast<double>(s + 1)));
    CHECK(cosine(s) == linear(s));
  }
  CHECK(linear(4) == 2);
  CHECK(cosine(4) == 2);
  CHECK(linear(8) == Approx(1.25));  // half way: floor + (peak - floor) / 2
  CHECK(cosine(8) == Approx(1.25));
  CHECK(linear(6) == Approx(1.625));  // a quarter of the way: 2 - 1.5 / 4
  CHECK(cosine(6) == Approx(0.5 + 1.5 * (1 + std::sqrt(0.5)) / 2));
  for (const index_t s : {12, 13, 1000}) {
    CHECK(linear(s) == 0.5);
    CHECK(cosine(s) == 0.5);
  }
  for (index_t s = 4; s < 12; ++s) {
    CHECK(linear(s + 1) < linear(s));
    CHECK(cosine(s + 1) < cosine(s));
  }
}

TEST_CASE("schedules: without warm-up, without decay, and refused settings", "[train][schedule]") {
  CHECK(linear_schedule({.peak = 1, .steps = 10})(0) == 1);
  const cosine_schedule only_warmup({.peak = 1, .warmup = 5, .steps = 5});
  CHECK(only_warmup(4) == 1);
  CHECK(only_warmup(5) == 0);
  CHECK(cosine_schedule({.peak = 1})(0) == 0);  // a run of no steps
  CHECK_THROWS_WITH(cosine_schedule({.warmup = 5, .steps = 4}),
                    "sluice: a schedule needs 0 <= warmup <= steps, not 5 and 4");
  CHECK_THROWS_AS(linear_schedule({.warmup = -1, .steps = 4}), std::invalid_argument);
  for (const double bad : {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_WITH(cosine_schedule({.peak = bad}), Catch::Matchers::Contains("finite peak and floor >= 0"));
    CHECK_THROWS_WITH(linear_schedule({.floor = bad}), Catch::Matchers::Contains("finite peak and floor >= 0"));
    CHECK_THROWS_WITH(constant_schedule(bad), Catch::Matchers::Contains("finite rate >= 0"));
  }
}
