// The machine's limits: not what they are, but that nobody has left the work out.
#include "machine.hpp"
#include "support.hpp"

using namespace bench;

TEST_CASE("limits: twice the work is not free", "[bench]") {
  // If the compiler had removed the loops, a million times the rounds would take no time at all. Orders of magnitude only.
  const auto seconds = [](auto&& work) {
    return fastest_round(
        1, 3, [](int) {}, work);
  };
  const double few = seconds([](int) { detail::multiply_add(10); });
  const double many = seconds([](int) { detail::multiply_add(1'000'000); });
  CHECK(many > 10 * few);

  const sluice::buffer<float> numbers(1 << 20, 1.0f);
  const double part = seconds([&](int) { detail::read<1>(numbers.data(), 1 << 10); });
  const double whole = seconds([&](int) { detail::read<1>(numbers.data(), 1 << 20); });
  CHECK(whole > 10 * part);
}

TEST_CASE("limits: all of them are found", "[bench]") {
  const limits found = measure_limits(2, {1 << 18, 1 << 20}, /*brief=*/true);
  CHECK(found.threads == 2);
  CHECK(found.gflops > 0);
  CHECK(found.l2 > 0);
  CHECK(found.l3 > 0);
  CHECK(found.memory > 0);
}

TEST_CASE("limits: the better of two measurements is kept", "[bench]") {
  limits a{1, 10, 5, 4, 3};
  a.merge({1, 8, 6, 2, 7});
  CHECK(a.gflops == 10);
  CHECK(a.l2 == 6);
  CHECK(a.l3 == 4);
  CHECK(a.memory == 7);
}
