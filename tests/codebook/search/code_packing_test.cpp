#include <sluice/codebook/search/code_packing.hpp>

#include "support.hpp"

using namespace sluice;

TEST_CASE("code_packing: columns of unequal bits go on across bytes, low bits first", "[codebook][search]") {
  const index_t bits[] = {4, 3, 2};
  const code_packing packing{std::span(bits)};
  REQUIRE(packing.bytes() == 2);
  matrix<index_t> ids(2, 3), back(2, 3);
  ids << 13, 5, 3, 1, 0, 2;
  matrix<std::uint8_t> bytes = matrix<std::uint8_t>::Constant(2, 2, 0xff);
  packing.pack(ids, bytes);
  CHECK(bytes(0, 0) == (13 | 5 << 4 | (3 & 1) << 7));
  CHECK(bytes(0, 1) == 1);
  CHECK(bytes(1, 0) == 1);
  CHECK(bytes(1, 1) == 1);
  packing.unpack(bytes, back);
  CHECK(ids == back);
}

TEST_CASE("code_packing: every number of bits comes back", "[codebook][search]") {
  const random_source random(5);
  for (index_t bits = 1; bits <= 32; ++bits) {
    CAPTURE(bits);
    const code_packing packing(7, bits);
    matrix<index_t> ids(5, 7), back(5, 7);
    for (index_t i = 0; i < ids.size(); ++i)
      ids.data()[i] =
          static_cast<index_t>(random.uniform(random_site::user_site, i) * std::ldexp(1.0, static_cast<int>(bits)));
    ids(0, 0) = (index_t{1} << bits) - 1;
    matrix<std::uint8_t> bytes(5, packing.bytes());
    packing.pack(ids, bytes);
    packing.unpack(bytes, back);
    CHECK(ids == back);
    ids(3, 2) = index_t{1} << bits;
    CHECK_THROWS_AS(packing.pack(ids, bytes), std::invalid_argument);
    ids(3, 2) = -1;
    CHECK_THROWS_AS(packing.pack(ids, bytes), std::invalid_argument);
  }
  CHECK_THROWS_AS(code_packing(1, 0), std::invalid_argument);
  CHECK_THROWS_AS(code_packing(1, 33), std::invalid_argument);
  CHECK_THROWS_AS(code_packing(0, 8), std::invalid_argument);
  matrix<index_t> ids(0, 7);
  matrix<std::uint8_t> bytes(0, 7);
  code_packing(7, 8).pack(ids, bytes);
  CHECK_THROWS_AS(code_packing(6, 8).pack(ids, bytes), std::invalid_argument);
}
