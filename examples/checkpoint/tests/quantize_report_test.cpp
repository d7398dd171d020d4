#include "quantize_svg.hpp"

#include "../../shared/testing.hpp"

using namespace checkpoint;

namespace {

/// Two experts of 100 weights, 4.5 and 8.5 bits each; the second got no token.
std::vector<rounded_expert> two_rounded() {
  const rounded_expert first{.layer = "layers.3",
                             .expert = 0,
                             .format = "int4",
                             .numbers = 100,
                             .bytes = 56.25,
                             .weights = {9, 100},
                             .outputs = {4, 400},
                             .nearest_weights = {4, 100},
                             .nearest_outputs = {16, 400},
                             .tokens = 1234};
  const rounded_expert second{.layer = "layers.3",
                              .expert = 1,
                              .format = "int8",
                              .numbers = 100,
                              .bytes = 106.25,
                              .weights = {7, 300},
                              .nearest_weights = {7, 300},
                              .has_few_tokens = true};
  return {first, second};
}

}  // namespace

TEST_CASE("quantize_report: errors of all are those of the sums, and who has no tokens has no error of outputs",
          "[checkpoint]") {
  const auto rows = table_of(two_rounded(), true);
  REQUIRE(rows.size() == 4);
  CHECK(rows[1] == std::vector<std::string>{"layers.3 expert 0", "int4", "4.50", "0.30000", "0.20000", "0.10000",
                                            "0.20000", "1234"});
  CHECK(rows[2][5] == "-");
  // sqrt(16 / 400) = 0.2, sqrt(11 / 400) = 0.16583
  CHECK(rows[3] ==
        std::vector<std::string>{"all", "mixed", "6.50", "0.20000", "0.16583", "0.10000", "0.20000", "1234"});
  CHECK(table_of(two_rounded(), false)[1].size() == 4);
  CHECK(few_tokens(two_rounded(), 16) == "layers.3: fewer than 16 tokens, so rounded to nearest: expert 1\n");
  CHECK(few_tokens({two_rounded()[0]}, 16).empty());
}

TEST_CASE("quantize_svg: a picture says every number and what its colours mean", "[checkpoint]") {
  const std::string picture = quantize_picture(two_rounded(), true, "a < b", "of two");
  CHECK(shared::testing::xml_fault(picture).empty());
  for (const char* const part : {"a &lt; b", "int4, 4.50 bits a weight with its scales: 1 expert<", ">8.50<",
                                 ">10.00 %<", "layers.3, expert 1: no calibration token", ">if to nearest<", ">30<"}) {
    CAPTURE(part);
    CHECK(picture.find(part) != std::string::npos);
  }
  const std::string plain = quantize_picture(two_rounded(), false, "a", "b");
  CHECK(shared::testing::xml_fault(plain).empty());
  CHECK(plain.find("Error of outputs") == std::string::npos);
}
