#include <sluice/checkpoint/json_object.hpp>

#include "io/messages.hpp"
#include "support.hpp"

#include <string>

using namespace sluice;
using detail::json_object;
using detail::json_value;
using detail::parse_json;

namespace {

const std::string file = "config.json";

}  // namespace

TEST_CASE("json_value: NaN and infinities are no numbers, and harm nobody who does not ask for them", "[checkpoint]") {
  const json_value document =
      parse_json(R"({"n":NaN,"list":[Infinity, -Infinity,1],"text":"NaN, Infinity [NaN]","k":7})", file);
  const json_object json(document, file);
  CHECK(json.integer({"k"}, {1, 9}) == 7);
  CHECK(json.text_if_given({"text"}) == "NaN, Infinity [NaN]");
  CHECK_THROWS_WITH(json.number_if_given({"n"}, 0, 1), test::contains("key \"n\": must be a number, is NaN"));
  CHECK_THROWS_WITH(json.integer({"n"}, {0, 1}), test::contains("is NaN"));
  CHECK_THROWS_WITH(json.integers_if_given({"list"}, {0, 1}), test::contains("is Infinity"));
  CHECK(document.find("list")->elements()[1].shown() == "-Infinity");
  CHECK(json.number_if_given({"k"}, 0, 10) == 7);
  for (const char* const text : {"[NaN5]", "[1NaN]", "[-NaN]", "[nan]", "[Infinit]", "[+Infinity]", "{NaN:1}"}) {
    CAPTURE(text);
    CHECK_THROWS_WITH(parse_json(text, file), test::contains("not valid JSON"));
  }
  CHECK(parse_json("NaN", file).shown() == "NaN");
  CHECK(parse_json(R"(["\"", NaN, "\\"])", file).elements()[1].shown() == "NaN");
}

TEST_CASE("json_value: a key given twice is refused where it is asked for", "[checkpoint]") {
  const json_value document = parse_json(R"({"a":1,"a":2,"b":{"x":1,"\u0078":1},"c":3})", file);
  const json_object json(document, file);
  CHECK(json.integer({"c"}, {1, 9}) == 3);
  CHECK_THROWS_WITH(json.integer({"a"}, {1, 9}), test::contains("key \"a\": is given twice"));
  CHECK_THROWS_WITH(json.object({"b"}).integer({"x"}, {1, 9}), test::contains("key \"b.x\": is given twice"));
}
