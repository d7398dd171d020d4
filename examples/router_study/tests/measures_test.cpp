// What the study measures by: dispatch entropy, changes of routing, the clustered task, claims.
#include "measures.hpp"

#include "../../shared/testing.hpp"
#include "claims.hpp"
#include "clusters.hpp"
#include "picture.hpp"

using namespace study;

namespace {

sluice::sparse_plan<float> plan_of(const std::vector<index_t>& experts, index_t count) {
  sluice::sparse_plan<float> plan;
  plan.reset(static_cast<index_t>(experts.size()), count);
  for (std::size_t t = 0; t < experts.size(); ++t) plan.add(static_cast<index_t>(t), experts[t], 1.0F);
  plan.finish();
  return plan;
}

struct seen_plan {
  sluice::sparse_plan<float> plan;
  sluice::routing_statistics statistics;
};

outcome some_outcome(const char* name, const char* room, double accuracy, double flops) {
  measured m;
  m.accuracy = accuracy;
  m.flops = flops;
  m.over_training = {{1.2, 8, 0.5, 0}, {0.4, 2, 0.25, 0.01}};
  outcome o;
  o.of.name = name;
  o.of.title = name;
  o.of.room = room;
  o.digits = o.clusters = {m, m};
  return o;
}

}  // namespace

TEST_CASE("router_study: dispatch entropy is 0 if every expert has one kind, that of the kinds if experts tell nothing",
          "[router_study]") {
  const auto kind = [](index_t t) { return t % 2; };
  CHECK(dispatch_entropy(plan_of({0, 1, 0, 1}, 2), 2, kind) == 0);
  CHECK(std::abs(dispatch_entropy(plan_of({0, 0, 0, 0}, 2), 2, kind) - std::log(2)) < 1e-12);
  // Expert 0 has kinds 0, 1, 0 and expert 1 kind 1: 3/4 of the entropy of (2/3, 1/3).
  const double mixed = -(2 / 3. * std::log(2 / 3.) + 1 / 3. * std::log(1 / 3.));
  CHECK(std::abs(dispatch_entropy(plan_of({0, 0, 0, 1}, 2), 2, kind) - 0.75 * mixed) < 1e-12);
}

TEST_CASE("router_study: a watch tells which tokens got other experts", "[router_study]") {
  routing_watch watch;
  const auto kind = [](index_t) { return index_t{0}; };
  for (const auto& experts : {std::vector<index_t>{0, 1, 2, 3}, {0, 1, 3, 2}, {0, 1, 3, 2}})
    watch.look(seen_plan{plan_of(experts, 4), {}}, 1, kind);
  const auto records = watch.records();
  CHECK(records[0].changed == 0);
  CHECK(records[1].changed == 0.5);
  CHECK(records[2].changed == 0);
}

TEST_CASE("router_study: the clustered task is drawn by its seed, and patches are as long as the paper says",
          "[router_study]") {
  const auto data = clusters::make(200, 3);
  CHECK(data.train.x.rows() == 200);
  CHECK(data.test.x == clusters::make(200, 3).test.x);
  CHECK(data.test.x != clusters::make(200, 4).test.x);
  for (index_t i = 0; i < 200; ++i) {
    std::vector<double> norms;
    for (index_t p = 0; p < clusters::patches; ++p)
      norms.push_back(
          static_cast<double>(data.train.x.row(i).segment(p * clusters::patch_width, clusters::patch_width).norm()));
    std::sort(norms.begin(), norms.end());
    CHECK(norms[1] > 4.9);   // alpha is at least 0.5, and all is times 10
    CHECK(norms[3] < 30.1);  // gamma is at most 3
  }
}

TEST_CASE("router_study: claims hold or do not, with their numbers", "[router_study]") {
  results all;
  all.routers = {some_outcome("relu_router", "threshold", 0.95, 20000),
                 some_outcome("expert_choice_router", "experts choose", 0.9, 9000)};
  const auto claims = claims_about(all, 2);
  REQUIRE(claims.size() == 2);
  CHECK(claims[0].holds);
  CHECK(claims[0].measured.find("2.00 experts a token, 8.00 after") != std::string::npos);
  CHECK_FALSE(claims[1].holds);
  CHECK(claims[1].measured == "0.250000");
}

TEST_CASE("router_study: the picture is well-formed, whatever the accuracies", "[router_study]") {
  std::vector<outcome> routers;
  for (int i = 0; i < 40; ++i)
    routers.push_back(some_outcome("a & b", "fixed", i == 3 ? 0.1 : 0.95, 1000.0 * (1 + i % 3)));
  CHECK(shared::testing::xml_fault(picture(routers, {{"<claim>", "1", true}, {"other", "2", false}}, "about")) == "");
  CHECK(shared::testing::xml_fault(picture({routers[0]}, {}, "one")) == "");
}
