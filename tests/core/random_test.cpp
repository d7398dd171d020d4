#include <sluice/core/random.hpp>

#include "../support.hpp"

#include <set>

using namespace sluice;

namespace {
constexpr random_site noise("noise");
}

TEST_CASE("philox_4x32_10: the test vectors of its authors", "[core][random]") {
  // Random123, kat_vectors: philox 4x32, 10 rounds.
  using block = detail::random_block;
  CHECK(detail::philox_4x32_10({0, 0, 0, 0}, 0, 0) == block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(detail::philox_4x32_10({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffff, 0xffffffff) ==
        block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(detail::philox_4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0) ==
        block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("random_source: a draw depends on seed, step, site and position, and on nothing else", "[core][random]") {
  const random_source a(7, 3);
  const double u = a.uniform(random_site::user_site, 11);
  CHECK(random_source(7, 3).uniform(random_site::user_site, 11) == u);
  a.uniform(random_site::user_site, 12);
  CHECK(a.uniform(random_site::user_site, 11) == u);
  CHECK(random_source(7).at_step(3).uniform(random_site::user_site, 11) == u);

  std::set<double> draws{u};
  draws.insert(random_source(8, 3).uniform(random_site::user_site, 11));
  draws.insert(random_source(7, 4).uniform(random_site::user_site, 11));
  draws.insert(a.uniform(noise, 11));
  draws.insert(a.uniform(random_site::user_site, 12));
  draws.insert(a.uniform(random_site::user_site, 11 + (index_t(1) << 32)));
  draws.insert(random_source(7 + (std::uint64_t(1) << 32), 3).uniform(random_site::user_site, 11));
  draws.insert(random_source(7, 3 + (std::uint64_t(1) << 32)).uniform(random_site::user_site, 11));
  CHECK(draws.size() == 8);
}

TEST_CASE("random_source: whatever the random words are, a uniform draw is neither 0 nor 1", "[core][random]") {
  constexpr auto unit = &detail::between_zero_and_one;
  constexpr std::uint32_t most = 0xffffffff;
  CHECK(unit(0, 0) == 0x1p-54);
  CHECK(unit(most, most) == 1 - 0x1p-53);
  CHECK(unit(most, most - 63) == 1 - 0x1p-53);       // the low six bits are not used
  CHECK(unit(most, most - 64) == 1 - 0x1p-52);       // a step below: a tie, which goes to the even neighbour
  CHECK(unit(0x80000000, 0) == 0.5);
  CHECK(unit(0x7fffffff, most) == 0.5 - 0x1p-54);
  for (const double u : {unit(0, 0), unit(most, most)}) {
    CHECK(std::isfinite(std::log(u)));
    CHECK(std::isfinite(std::log(-std::log(u))));
  }
}

TEST_CASE("random_source: moments of the three distributions", "[core][random]") {
  // n = 10^5 draws; each mean is allowed 5 standard deviations of itself.
  const index_t n = 100000;
  const random_source random(42);
  double u1 = 0, u2 = 0, z1 = 0, z2 = 0, z3 = 0, z4 = 0, g1 = 0, smallest = 1, largest = 0;
  for (index_t i = 0; i < n; ++i) {
    const double u = random.uniform(random_site::user_site, i);
    const double z = random.normal(noise, i);
    u1 += u, u2 += u * u, z1 += z, z2 += z * z, z3 += z * z * z, z4 += z * z * z * z;
    g1 += random.gumbel(random_site("thinning"), i);
    smallest = std::min(smallest, u), largest = std::max(largest, u);
  }
  const double root = std::sqrt(static_cast<double>(n));
  const double mean = 1.0 / static_cast<double>(n);
  CHECK(std::abs(u1 * mean - 0.5) < 5 * std::sqrt(1.0 / 12) / root);
  CHECK(std::abs(u2 * mean - 1.0 / 3) < 5 * std::sqrt(4.0 / 45) / root);
  CHECK(std::abs(z1 * mean) < 5 / root);
  CHECK(std::abs(z2 * mean - 1) < 5 * std::sqrt(2.0) / root);
  CHECK(std::abs(z3 * mean) < 5 * std::sqrt(15.0) / root);
  CHECK(std::abs(z4 * mean - 3) < 5 * std::sqrt(96.0) / root);
  CHECK(std::abs(g1 * mean - 0.57721566490153286) < 5 * (std::numbers::pi / std::sqrt(6.0)) / root);
  CHECK(smallest > 0);
  CHECK(largest < 1);
  CHECK(smallest < 1e-3);
  CHECK(largest > 1 - 1e-3);
}

TEST_CASE("random_source: neighbouring positions and steps are uncorrelated", "[core][random]") {
  const index_t n = 100000;
  const random_source random(3);
  const random_source next = random.at_step(1);
  double with_next_position = 0, with_next_step = 0;
  for (index_t i = 0; i < n; ++i) {
    const double z = random.normal(random_site::user_site, i);
    with_next_position += z * random.normal(random_site::user_site, i + 1);
    with_next_step += z * next.normal(random_site::user_site, i);
  }
  const double bound = 5 * std::sqrt(static_cast<double>(n));
  CHECK(std::abs(with_next_position) < bound);
  CHECK(std::abs(with_next_step) < bound);
}

TEST_CASE("random_source: recorded draws take the generator's place at one site", "[core][random]") {
  const std::vector<double> recorded{0.25, -3, 7};
  random_source random(1);
  const double before = random.normal(random_site("jitter"), 0);
  const double past_the_end = random.normal(noise, 3);
  random.replay(noise, recorded);
  CHECK(random.normal(noise, 0) == 0.25);
  CHECK(random.uniform(noise, 1) == -3);
  CHECK(random.gumbel(noise, 2) == 7);
  CHECK(random.normal(noise, 3) == past_the_end);
  CHECK(random.normal(random_site("jitter"), 0) == before);
  CHECK(random.at_step(9).normal(noise, 1) == -3);
  CHECK(random.split(2).normal(noise, 1) == -3);
  CHECK(random.normal(noise, -1) == random_source(1).normal(noise, -1));
}

TEST_CASE("random_site: names are hashed while compiling", "[core][random]") {
  // 32-bit FNV-1a of "", "a" and "foobar", from its authors' test vectors.
  STATIC_REQUIRE(random_site("").number() == 0x811c9dc5);
  STATIC_REQUIRE(random_site("a").number() == 0xe40c292c);
  STATIC_REQUIRE(random_site("foobar").number() == 0xbf9cf968);
  STATIC_REQUIRE(random_site("a") == random_site(0xe40c292cu));
  STATIC_REQUIRE_FALSE(random_site("a") == random_site("b"));
}

TEST_CASE("random_source: splits draw for themselves, at every site and step, and can be split again",
          "[core][random]") {
  const random_source source(7, 3);
  CHECK(source.split(4).normal(noise, 11) == random_source(7, 3).split(4).normal(noise, 11));
  CHECK(source.split(4).at_step(9).normal(noise, 11) == source.at_step(9).split(4).normal(noise, 11));
  std::set<double> draws;
  for (const random_source& s : {source, source.at_step(4), random_source(8, 3)})
    for (const index_t i : {11, 12})
      for (const random_site site : {noise, random_site("jitter")}) {
        draws.insert(s.uniform(site, i));
        for (const index_t place : {index_t(0), index_t(1), index_t(2), index_t(1) << 32}) {
          draws.insert(s.split(place).uniform(site, i));
          draws.insert(s.split(place).split(0).uniform(site, i));
          draws.insert(s.split(place).split(1).uniform(site, i));
        }
      }
  CHECK(draws.size() == 3 * 2 * 2 * (1 + 4 * 3));

  // Neighbouring places are uncorrelated: a sum of n products of independent normals has deviation sqrt(n).
  const index_t n = 20000;
  double sum = 0;
  for (index_t i = 0; i < n; ++i) sum += source.split(0).normal(noise, i) * source.split(1).normal(noise, i);
  CHECK(std::abs(sum) < 5 * std::sqrt(static_cast<double>(n)));
}
