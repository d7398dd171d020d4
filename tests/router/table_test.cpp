// The table of routers tells the truth: every row has a router that does what it says, every router a row.
#include <set>

#include "router_table.hpp"
#include "support.hpp"

using namespace sluice;

namespace {

std::vector<test::table_row> router_rows() {
  return test::read_router_table(SLUICE_TEST_DATA "/../../include/sluice/router/routers.csv");
}

}  // namespace

TEST_CASE("table of routers: every row has a router, and every router a row", "[router][table]") {
  std::set<std::string> rows, makers;
  for (const auto& row : router_rows()) {
    INFO(row.name);
    CHECK(rows.insert(row.name).second);
  }
  for (const auto& [name, make] : test::table_makers()) {
    INFO(name);
    CHECK(makers.insert(name).second);
  }
  for (const auto& name : rows) {
    INFO("routers.csv has a row " << name << "; its test makes none: test::table_router (router_table.hpp)");
    CHECK(makers.count(name) == 1);
  }
  for (const auto& name : makers) {
    INFO("a test makes " << name << "; routers.csv has no such row");
    CHECK(rows.count(name) == 1);
  }
}

TEST_CASE("table of routers: what a row says is what the router does", "[router][table]") {
  for (const auto& row : router_rows()) {
    const auto maker = test::table_makers().find(row.name);
    if (maker == test::table_makers().end()) continue;
    for (const auto& complaint : test::complaints_about(row, maker->second())) FAIL_CHECK(complaint);
  }
}

TEST_CASE("table of routers: a row that is wrong is found out", "[router][table]") {
  const auto complaints = [](std::string name, auto change) {
    for (auto row : router_rows()) {
      if (row.name != name) continue;
      change(row);
      std::string all;
      for (const auto& complaint : test::complaints_about(row, test::table_makers().find(name)->second()))
        all += complaint + '\n';
      return all;
    }
    return std::string("no such row");
  };
  using row = test::table_row;
  using Catch::Contains;
  const auto none = [](row&) {};
  CHECK(complaints("top_k_router", none) == "");
  CHECK_THAT(complaints("top_k_router", [](row& r) { r.causal = "no"; }),
             Contains("its type says causal = true") && Contains("no token's route was seen to depend"));
  CHECK_THAT(complaints("expert_choice_router", [](row& r) { r.causal = "yes"; }),
             Contains("changes with other tokens"));
  CHECK_THAT(complaints("top_k_router", [](row& r) { r.experts_a_token = "at most k"; }),
             Contains("every token had k"));
  CHECK_THAT(complaints("top_k_router", [](row& r) { r.experts_a_token = "1"; }), Contains("2 experts, not 1"));
  CHECK_THAT(complaints("relu_router", [](row& r) { r.experts_a_token = "all"; }), Contains("experts, not all"));
  CHECK_THAT(complaints("top_k_router", [](row& r) { r.experts_a_token = "varies"; }), Contains("had as many experts"));
  CHECK_THAT(complaints("switch_router", [](row& r) { r.tokens_an_expert = "free"; }), Contains("no expert took all"));
  CHECK_THAT(complaints("switch_router", [](row& r) { r.tokens_an_expert = "exactly C"; }), Contains("0 tokens, not"));
  CHECK_THAT(complaints("top_k_router", [](row& r) { r.gradient = "none"; }), Contains("it has a gradient"));
  CHECK_THAT(complaints("top_k_router", [](row& r) { r.gradient = "straight-through"; }), Contains("it is exact"));
  CHECK_THAT(complaints("top_any_router", [](row& r) { r.gradient = "exact"; }), Contains("differs from differences"));
  CHECK_THAT(complaints("top_k_router", [](row& r) { r.gradient = "inference only"; }), Contains("can be trained"));
  CHECK_THAT(complaints("predicted_choice_router", [](row& r) { r.gradient = "none"; }), Contains("has no backward"));
  CHECK_THAT(complaints("advmoe_router", [](row& r) { r.gradient = "none"; }), Contains("it has a gradient"));
  CHECK_THAT(complaints("hash_router", [](row& r) { r.gradient = "exact"; }), Contains("all of its gradients are 0"));
  CHECK_THAT(complaints("hash_router", [](row& r) { r.needs.clear(); }), Contains("token_ids"));
  CHECK_THAT(complaints("top_k_router", [](row& r) { r.needs = {"token_ids"}; }),
             Contains("token_ids changes nothing") && Contains("without token_ids is no error"));
  CHECK_THAT(complaints("noisy_top_k_router", [](row& r) { r.uses.clear(); }), Contains("random changes what it does"));
  CHECK_THAT(complaints("top_k_router", [](row& r) { r.uses = {"rondom"}; }), Contains("no field rondom"));
}
