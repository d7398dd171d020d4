#include <sluice/checkpoint/json_object.hpp>

#include "io/messages.hpp"
#include "support.hpp"

#include <limits>
#include <string>

using namespace sluice;
using detail::json_object;
using detail::json_value;
using detail::parse_json;

namespace {

const std::string config_file = "config.json";

}  // namespace

TEST_CASE("json_value: NaN and infinities are no numbers, and harm nobody who does not ask for them", "[checkpoint]") {
  const json_value document =
      parse_json(R"({"n":NaN,"list":[Infinity, -Infinity,1],"text":"NaN, Infinity [NaN]","k":7})", config_file);
  const json_object keys(document, config_file);
  CHECK(keys.integer({"k"}, {1, 9}) == 7);
  CHECK(keys.text_if_given({"text"}) == "NaN, Infinity [NaN]");
  CHECK_THROWS_WITH(keys.number_if_given({"n"}, 0, 1), test::contains("key \"n\": must be a number, is NaN"));
  CHECK_THROWS_WITH(keys.integer({"n"}, {0, 1}), test::contains("is NaN"));
  CHECK_THROWS_WITH(keys.integers_if_given({"list"}, {0, 1}), test::contains("is Infinity"));
  CHECK(document.find("list")->elements()[1].shown() == "-Infinity");
  CHECK(keys.number_if_given({"k"}, 0, 10) == 7);
  for (const char* const text : {"[NaN5]", "[1NaN]", "[-NaN]", "[nan]", "[Infinit]", "[+Infinity]", "{NaN:1}"}) {
    CAPTURE(text);
    CHECK_THROWS_WITH(parse_json(text, config_file), test::contains("not valid JSON"));
  }
  CHECK(parse_json("NaN", config_file).shown() == "NaN");
  CHECK(parse_json(R"(["\"", NaN, "\\"])", config_file).elements()[1].shown() == "NaN");
}

TEST_CASE("json_value: numbers beyond every double are no numbers either", "[checkpoint]") {
  const json_value document = parse_json(
      R"({"n":1e999,"list":[-2.5E+400, 1.7976931348623159e308,0.0001e313,12345e305],"k":7,)"
      R"("last":9e99999999999999999999})",
      config_file);
  const json_object keys(document, config_file);
  CHECK(keys.integer({"k"}, {1, 9}) == 7);
  const auto beyond = test::contains("is a number beyond 1.8e308");
  CHECK_THROWS_WITH(keys.number_if_given({"n"}, 0, 1), test::contains("key \"n\": must be a number") && beyond);
  CHECK_THROWS_WITH(keys.integer({"last"}, {0, 1}), beyond);
  for (const json_value& element : document.find("list")->elements())
    CHECK(element.shown() == "a number beyond 1.8e308");

  const json_value within =
      parse_json("[1.7976931348623157e308, 0.00017976931348623157e312, 0e999, 0.0E+400, 1e-999, 1e308]", config_file);
  for (const json_value& element : within.elements()) CHECK(element.is_number());
  CHECK(within.elements()[0].number() == (std::numeric_limits<double>::max)());
  CHECK(within.elements()[1].number() > 1e308);
  for (const char* const text :
       {"[1e9e9]", "[1e999x]", "[01e999]", "[1.e999]", "[1e+]", "[-e999]", "[1e+-999]", "[+1e999]"}) {
    CAPTURE(text);
    CHECK_THROWS_WITH(parse_json(text, config_file), test::contains("not valid JSON"));
  }
  CHECK(parse_json(R"(["1e999"])", config_file).elements()[0].text() == "1e999");
}

TEST_CASE("json_value: a key given twice is refused where it is asked for", "[checkpoint]") {
  const json_value document = parse_json(R"({"a":1,"a":2,"b":{"x":1,"\u0078":1},"c":3})", config_file);
  const json_object keys(document, config_file);
  CHECK(keys.integer({"c"}, {1, 9}) == 3);
  CHECK_THROWS_WITH(keys.integer({"a"}, {1, 9}), test::contains("key \"a\": is given twice"));
  CHECK_THROWS_WITH(keys.object({"b"}).integer({"x"}, {1, 9}), test::contains("key \"b.x\": is given twice"));
}
