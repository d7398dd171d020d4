// Plans and tokens that the benchmarks are run on.
#include "workload.hpp"
#include "support.hpp"

using namespace bench;

TEST_CASE("workload: every token gets its experts, all of them distinct", "[bench]") {
  for (const double exponent : {0.0, 1.0}) {
    const plan p = skewed_plan(100, 16, 4, exponent, 1);
    CHECK(p.size() == 400);
    p.validate();
    for (const float weight : p.weights()) CHECK(weight == 0.25f);
  }
  CHECK(skewed_plan(3, 4, 4, 1.0, 2).size() == 12);
}

TEST_CASE("workload: Zipf's law loads experts unevenly, exponent 0 evenly", "[bench]") {
  // 4096 draws of one among 16: the first has 1/H(16) = 0.296 of the popularity, or 1/16.
  const auto zipf = summarize({skewed_plan(4096, 16, 1, 1.0, 3)}), even = summarize({skewed_plan(4096, 16, 1, 0.0, 3)});
  CHECK(zipf.largest == Approx(4096 * 0.2958).margin(150));  // five standard deviations of the draw
  CHECK(even.largest == Approx(256).margin(80));
  CHECK(zipf.touched == 16);
}

TEST_CASE("workload: another seed is another plan, and batches differ", "[bench]") {
  const plan a = skewed_plan(8, 64, 2, 1.0, 4), b = skewed_plan(8, 64, 2, 1.0, 5);
  bool differ = false;
  for (index_t i = 0; i < a.size(); ++i) differ |= a.expert(i) != b.expert(i);
  CHECK(differ);
  const auto batches = random_batches(1, 32, 6);
  REQUIRE(batches.size() >= 2);
  CHECK(batches[0] != batches[1]);
  CHECK(random_batches(1, 32, 6)[1] == batches[1]);
}
