#include <sluice/core/statistics.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("routing_statistics: counts tokens, assignments, drops and loads over calls", "[core][statistics]") {
  sparse_plan<float> p;
  p.reset(4, 3);
  p.add(0, 1, 1);
  p.add(1, 1, 1);
  p.add(2, 0, 1);
  p.add_dropped({2, 1, 0, 2, 1});
  p.finish();
  routing_statistics s;
  s.count(p, 1);
  CHECK(s.calls == 1);
  CHECK(s.tokens == 3);
  CHECK(s.assignments == 3);
  CHECK(s.dropped == 1);
  CHECK(s.experts_per_token() == 1);
  s.count(p, 0);
  CHECK(s.calls == 2);
  CHECK(s.tokens == 7);
  CHECK(s.load[0] == 2);
  CHECK(s.load[1] == 4);
  CHECK(s.load[2] == 0);
  // loads 2, 4, 0: mean 2, variance (0 + 4 + 4) / 3
  CHECK(s.load_cv() == Approx(std::sqrt(8.0 / 3) / 2));
  s.clear();
  CHECK(s.tokens == 0);
  CHECK(s.load[1] == 0);
  CHECK(s.load_cv() == 0);
  CHECK(s.experts_per_token() == 0);
}

TEST_CASE("routing_statistics: clear forgets every load, of few experts and of many", "[core][statistics]") {
  routing_statistics s;
  sparse_plan<float> p;
  for (const index_t busy : {1, 5, 500, 6, 1000, 2}) {  // short lists of counters, and ones that are not kept
    CAPTURE(busy);
    for (int call = 0; call < 2; ++call) {
      p.reset(busy, 1000);
      for (index_t t = 0; t < busy; ++t) p.add(t, (t * 7 + call) % 1000, 1);
      p.finish();
      s.count(p, 0);
    }
    index_t total = 0;
    for (const index_t n : s.load) total += n;
    CHECK(total == 2 * busy);
    CHECK(s.load[0] + s.load[1] >= 2);
    s.clear();
    CHECK(std::all_of(s.load.begin(), s.load.end(), [](index_t n) { return n == 0; }));
  }
}

TEST_CASE("routing_statistics: extremes of the load's spread", "[core][statistics]") {
  routing_statistics s;
  CHECK(s.load_cv() == 0);
  sparse_plan<float> p;
  p.reset(8, 4);
  for (index_t t = 0; t < 8; ++t) p.add(t, t % 4, 1);
  p.finish();
  s.count(p, 0);
  CHECK(s.load_cv() == 0);
  s.clear();
  p.reset(8, 4);
  for (index_t t = 0; t < 8; ++t) p.add(t, 2, 1);
  p.finish();
  s.count(p, 0);
  CHECK(s.load_cv() == Approx(std::sqrt(3.0)));
}

TEST_CASE("routing_statistics: a soft plan fills every slot, another number of experts starts anew",
          "[core][statistics]") {
  routing_statistics s;
  soft_plan<float> p;
  p.reset(5, 2, 3, {});
  s.count(p, 0);
  CHECK(s.assignments == 6);
  CHECK(s.load[1] == 3);
  CHECK(s.dropped == 0);
  p.reset(5, 4, 1, {});
  s.count(p, 0);
  CHECK(s.load.size() == 4);
  CHECK(s.load[3] == 1);
}
