#include <sluice/capacity/capacity_limit.hpp>

#include "capacity_support.hpp"

using namespace sluice;
using rounding = capacity_rounding;

TEST_CASE("capacity_limit: V-MoE's rounding, multiple and error", "[capacity]") {
  struct row {
    rounding round;
    index_t choices, experts;
    double factor;
    index_t multiple, capacity;
  };
  // By hand; halves go to the even neighbour: 10/4 = 2.5 -> 2, 14/4 = 3.5 -> 4, 6/4 = 1.5 -> 2.
  const auto r = GENERATE(row{rounding::up, 16, 4, 1.0, 4, 4}, row{rounding::up, 17, 4, 1.0, 4, 8},
                          row{rounding::up, 17, 4, 1.25, 0, 6}, row{rounding::half_to_even, 10, 4, 1.0, 0, 2},
                          row{rounding::half_to_even, 14, 4, 1.0, 0, 4}, row{rounding::half_to_even, 6, 4, 1.0, 0, 2},
                          row{rounding::half_to_even, 11, 4, 1.0, 0, 3}, row{rounding::half_to_even, 9, 4, 1.0, 0, 2},
                          row{rounding::up, 2, 4, 1.0, 4, 4}, row{rounding::up, 50, 8, 1.0625, 4, 8},
                          row{rounding::up, 196, 8, 1.0, 4, 28}, row{rounding::up, 7, 7, 1.0, 8, 8},
                          row{rounding::down, 11, 4, 1.0, 0, 2});
  CAPTURE(r.choices, r.experts, r.factor, r.multiple);
  const capacity_limit limit = capacity_limit::vmoe(r.factor, r.round, r.multiple);
  CHECK(limit.of({.tokens = r.choices, .top_k = 1, .experts = r.experts}) == r.capacity);
  if (r.choices % 2 == 0) CHECK(limit.of({.tokens = r.choices / 2, .top_k = 2, .experts = r.experts}) == r.capacity);
}

TEST_CASE("capacity_limit: a capacity below 1 is refused with the numbers, not raised", "[capacity]") {
  const capacity_limit limit = capacity_limit::vmoe(0.25, rounding::half_to_even, 4);
  CHECK_THROWS_WITH(limit.of({.tokens = 3, .top_k = 2, .experts = 8}),
                    test::contains("capacity 0") && test::contains("T = 3") && test::contains("k = 2") &&
                        test::contains("E = 8") && test::contains("0.25"));
  CHECK_THROWS_WITH(capacity_limit::tutel(0.5).of({.tokens = 4, .top_k = 2, .experts = 4}),
                    test::contains("capacity 0"));
  CHECK_THROWS_WITH(capacity_limit::fastmoe(0.1).of({.tokens = 8, .top_k = 2, .experts = 8}),
                    test::contains("capacity 0"));
  CHECK(capacity_limit::gshard(0.25, 4).of({.tokens = 3, .top_k = 2, .experts = 8}) == 4);
}

TEST_CASE("capacity_limit: the other published formulas, by hand", "[capacity]") {
  const auto of = [](const capacity_limit& limit, index_t T, index_t k, index_t E) {
    return limit.of({.tokens = T, .top_k = k, .experts = E});
  };
  CHECK(of(capacity_limit::switch_transformer(1.25), 17, 1, 4) == 6);  // 5.3125
  CHECK(of(capacity_limit::switch_transformer(1.25), 17, 2, 4) == 6);  // does not see k
  CHECK(of(capacity_limit::gshard(1.0), 17, 2, 4) == 9);               // 8.5
  CHECK(of(capacity_limit::gshard(1.0, 12), 17, 2, 4) == 12);
  CHECK(of(capacity_limit::megatron(1.0), 16, 2, 4) == 8);
  CHECK(of(capacity_limit::xmoe(1.67, 2), 12, 4, 4) == 6);  // 5.01, whatever k is
  CHECK(of(capacity_limit::xmoe(1.0), 12, 4, 4) == 8);      // the minimum
  CHECK(of(capacity_limit::st_moe(1.25), 16, 2, 4) == 5);
  CHECK(of(capacity_limit::st_moe(1.0), 12, 2, 3) == 4);
  CHECK(of(capacity_limit::st_moe(2.0), 7, 2, 4) == 4);     // trunc(3.5) = 3, raised to the minimum
  CHECK(of(capacity_limit::st_moe(9.0), 20, 2, 4) == 20);   // never more than the tokens,
  CHECK(of(capacity_limit::st_moe(9.0), 2, 2, 4) == 4);     // but at least the minimum
  CHECK(of(capacity_limit::fastmoe(1.2), 16, 2, 4) == 10);  // ceil(19.2) * 2 / 4
  CHECK(of(capacity_limit::fastmoe(1.2), 17, 2, 4) == 10);  // ceil(20.4) = 21, 42 / 4 = 10.5
  // ceil(0.1 * 10) = 1, ceil(0.2 * 5) = 1: by way of E, as ceil((0.1 * 3) * 10 / 3), it would be 2.
  CHECK(of(capacity_limit::token_fraction(0.1), 10, 2, 3) == 1);
  CHECK(of(capacity_limit::token_fraction(0.2), 5, 1, 6) == 1);
  CHECK(of(capacity_limit::token_fraction(0.25), 10, 1, 7) == 3);
  CHECK_THROWS_AS(capacity_limit::token_fraction(0.5).shared_by({1, 2}), std::invalid_argument);
  CHECK(of(capacity_limit::fixed(7), 1, 1, 1) == 7);
  CHECK(of(capacity_limit::fixed(7).raised_to_multiple(4), 1, 1, 1) == 8);
}

TEST_CASE("capacity_limit: formulas that differ only in rounding differ", "[capacity]") {
  // cf T / E and (T / E) cf are rounded differently; where the exact value is an integer, only one of them may lie
  // above it.
  index_t different = 0;
  for (index_t T = 1; T <= 200; ++T)
    for (const index_t E : {3, 5, 7})
      for (const double factor : {0.3, 0.6, 0.7, 1.1}) {
        const capacity_request request{.tokens = T, .top_k = 1, .experts = E};
        const index_t a = capacity_limit::gshard(factor).of(request);
        const index_t b = capacity_limit::megatron(factor).of(request);
        const volatile double product = double(T) * factor;  // volatile: the order must hold under -ffast-math too
        const volatile double mean_load = double(T) / double(E);
        const volatile double divisor = double(E);
        CHECK(a == index_t(std::ceil(product / divisor)));
        CHECK(b == index_t(std::ceil(mean_load * factor)));
        different += a != b;
      }
  CHECK(different > 0);
}

TEST_CASE("capacity_limit: Tutel's three forms", "[capacity]") {
  const auto of = [](double factor, index_t largest_load, index_t multiple = 1) {
    return capacity_limit::tutel(factor, multiple)
        .of({.tokens = 13, .top_k = 3, .experts = 5, .largest_load = largest_load});
  };
  CHECK(of(1.0, 100) == 9);  // 3 * trunc(ceil(13 / 5))
  CHECK(of(1.5, 0) == 12);   // 3 * trunc(4.5)
  CHECK(of(1.0, 100, 4) == 12);
  CHECK(of(0.0, 11) == 11);  // everybody fits
  CHECK(of(0.0, 11, 8) == 16);
  CHECK(of(-1.0, 5) == 5);
  CHECK(of(-1.0, 50) == 9);
  CHECK(capacity_limit::tutel(0).reads_load());
}

TEST_CASE("capacity_limit: training and inference may differ", "[capacity]") {
  const capacity_limit limit = capacity_limit::switch_transformer({1.0, 2.0});
  CHECK(limit.of({.tokens = 20, .experts = 4, .training = true}) == 5);
  CHECK(limit.of({.tokens = 20, .experts = 4, .training = false}) == 10);
  CHECK(capacity_limit::fixed(3, 9).of({.tokens = 20, .training = true}) == 3);
  CHECK(capacity_limit::fixed(3, 9).of({.tokens = 20, .training = false}) == 9);
}

TEST_CASE("capacity_limit: experts may have unequal shares", "[capacity]") {
  // 8 FFN and 4 zero-computation experts, 1.1 * 2 * 64 = 140.8 choices: 10.56 and 14.08 each.
  const capacity_limit limit = capacity_limit::moe_plus_plus(1.1, 0.75, 8, 4);
  const capacity_request request{.tokens = 64, .top_k = 2, .experts = 12};
  for (index_t e = 0; e < 8; ++e) CHECK(limit.of(request, e) == 11);
  for (index_t e = 8; e < 12; ++e) CHECK(limit.of(request, e) == 15);
  const capacity_limit down = capacity_limit::moe_plus_plus(1.1, 0.75, 8, 4, rounding::down);
  CHECK(down.of(request, 0) == 10);
  CHECK(down.of(request, 8) == 14);
  CHECK_THROWS_WITH(limit.of({.tokens = 64, .top_k = 2, .experts = 11}), test::contains("12") && test::contains("11"));
  const capacity_limit shared = capacity_limit::switch_transformer(1).shared_by({1, 3});
  CHECK(shared.of({.tokens = 8, .experts = 2}, 0) == 2);
  CHECK(shared.of({.tokens = 8, .experts = 2}, 1) == 6);
}

TEST_CASE("capacity_limit: bad options are refused with their numbers", "[capacity]") {
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK_THROWS_WITH(capacity_limit::vmoe(0), test::contains("factor of 0 "));
  CHECK_THROWS_WITH(capacity_limit::gshard(-1.5), test::contains("-1.5"));
  CHECK_THROWS_AS(capacity_limit::switch_transformer(infinity), std::invalid_argument);
  CHECK_THROWS_AS(capacity_limit::st_moe(quiet_nan<double>()), std::invalid_argument);
  CHECK_THROWS_AS(capacity_limit::tutel(quiet_nan<double>()), std::invalid_argument);
  CHECK_THROWS_WITH(capacity_limit::vmoe({1.0, -3.0}), test::contains("-3"));
  CHECK_THROWS_WITH(capacity_limit::vmoe(1, rounding::up, -4), test::contains("-4"));
  CHECK_THROWS_WITH(capacity_limit::gshard(1, -2), test::contains("-2"));
  CHECK_THROWS_WITH(capacity_limit::fixed(0), test::contains("factor of 0 "));
  CHECK_THROWS_WITH(capacity_limit::moe_plus_plus(1, 0, 2, 2), test::contains("not 0"));
  CHECK_THROWS_WITH(capacity_limit::moe_plus_plus(1, 1, -1, 2), test::contains("-1"));
  CHECK_THROWS_WITH(capacity_limit::gshard(1).shared_by({1, -2}), test::contains("-2"));
  CHECK_THROWS_AS(capacity_limit::tutel(1).shared_by({1, 1}), std::invalid_argument);
}

TEST_CASE("capacity_limit: experts without a limit take all, and are not counted", "[capacity]") {
  const capacity_limit limit = capacity_limit::xmoe(1.0, 1).without_limit({3, 0, 3});
  const capacity_request request{.tokens = 10, .top_k = 2, .experts = 5};
  CHECK(limit.differs_between_experts());
  for (index_t e = 0; e < 5; ++e) CHECK(limit.of(request, e) == (e == 0 || e == 3 ? 10 : 4));  // ceil(10 / 3)
  CHECK(capacity_limit::gshard(1.0).without_limit({1}).of(request) == 5);                      // 20 / 4
  CHECK(capacity_limit::gshard(1.0).without_limit({}).of(request) == 4);
  CHECK_THROWS_WITH(limit.of({.tokens = 10, .experts = 3}), test::contains("expert 3") && test::contains("E = 3"));
  CHECK_THROWS_WITH(capacity_limit::gshard(1.0).without_limit({-1}), test::contains("-1"));
  CHECK_THROWS_WITH(capacity_limit::gshard(1.0).shared_by({1, 2}).without_limit({1}), test::contains("either"));
  CHECK_THROWS_WITH(capacity_limit::gshard(1.0).without_limit({1}).shared_by({1, 2}), test::contains("either"));
}
