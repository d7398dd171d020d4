#include <sluice/io/data_type.hpp>

#include "support.hpp"

#include <string>

using namespace sluice;

TEST_CASE("data_type: every published type is found by its name and has its size", "[io]") {
  struct row {
    data_type type;
    std::string name;
    std::size_t size;
  };
  const auto r = GENERATE(values<row>({{data_type::boolean, "BOOL", 1},
                                       {data_type::u8, "U8", 1},
                                       {data_type::i8, "I8", 1},
                                       {data_type::f8_e5m2, "F8_E5M2", 1},
                                       {data_type::f8_e4m3, "F8_E4M3", 1},
                                       {data_type::f8_e8m0, "F8_E8M0", 1},
                                       {data_type::i16, "I16", 2},
                                       {data_type::u16, "U16", 2},
                                       {data_type::f16, "F16", 2},
                                       {data_type::bf16, "BF16", 2},
                                       {data_type::i32, "I32", 4},
                                       {data_type::u32, "U32", 4},
                                       {data_type::f32, "F32", 4},
                                       {data_type::f64, "F64", 8},
                                       {data_type::i64, "I64", 8},
                                       {data_type::u64, "U64", 8}}));
  CAPTURE(r.name);
  CHECK(name_of(r.type) == r.name);
  CHECK(size_of(r.type) == r.size);
  CHECK(parse_data_type(r.name) == r.type);
}

TEST_CASE("data_type: other names are nothing", "[io]") {
  for (const char* name : {"", "F", "F320", "f32", "F31", "C64", "bool", "U8 "}) {
    CAPTURE(name);
    CHECK(parse_data_type(name) == std::nullopt);
  }
}

TEST_CASE("data_type_of: C++ integers map by size and sign, whatever their name", "[io]") {
  STATIC_REQUIRE(data_type_of<double> == data_type::f64);
  STATIC_REQUIRE(data_type_of<signed char> == data_type::i8);
  STATIC_REQUIRE(data_type_of<unsigned short> == data_type::u16);
  STATIC_REQUIRE(data_type_of<int> == data_type::i32);
  STATIC_REQUIRE(data_type_of<long long> == data_type::i64);
  STATIC_REQUIRE(data_type_of<unsigned long long> == data_type::u64);
  STATIC_REQUIRE(size_of(data_type_of<long>) == sizeof(long));
  STATIC_REQUIRE(!StorableValue<bool>);
  STATIC_REQUIRE(!StorableValue<char>);
  STATIC_REQUIRE(!StorableValue<long double>);
}
