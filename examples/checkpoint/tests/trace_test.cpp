#include "trace_svg.hpp"
#include "trace_text.hpp"

#include "../../shared/testing.hpp"

using namespace checkpoint;

namespace {

/// Three tokens, four experts: 0 with 1, 0 with 2, and 1 with 0; expert 3 gets nobody.
sluice::sparse_plan<float> small_plan() {
  sluice::sparse_plan<float> plan;
  plan.reset(3, 4);
  plan.add(0, 0, 0.75f, 0);
  plan.add(0, 1, 0.25f, 1);
  plan.add(1, 0, 0.5f, 0);
  plan.add(1, 2, 0.5f, 1);
  plan.add(2, 1, 1.0f, 0);
  plan.add(2, 0, 0.125f, 1);
  plan.finish();
  return plan;
}

}  // namespace

TEST_CASE("routing_trace: loads, entropy, pairs", "[checkpoint]") {
  routing_trace trace;
  trace.add("layers.0", small_plan());
  const traced_layer& layer = trace.layers().front();
  CHECK(layer.load == std::vector<index_t>{3, 2, 1, 0});
  CHECK(layer.assignments() == 6);
  const double entropy = -(0.5 * std::log2(0.5) + 1.0 / 3 * std::log2(1.0 / 3) + 1.0 / 6 * std::log2(1.0 / 6));
  CHECK(std::abs(layer.entropy_bits() - entropy) < 1e-12);
  CHECK(std::abs(layer.entropy_normalised() - entropy / 2) < 1e-12);
  CHECK(layer.dead_fraction() == 0.25);
  CHECK(layer.max_over_mean() == 2);
  CHECK(layer.together(0, 1) == 2);
  CHECK(layer.together(0, 0) == 3);
  const auto pairs = layer.top_pairs();
  REQUIRE(pairs.size() == 2);
  CHECK((pairs[0].first == 0 && pairs[0].second == 1 && pairs[0].tokens == 2 && pairs[0].lift == 1));
}

TEST_CASE("routing_trace: CSV and JSON", "[checkpoint]") {
  routing_trace trace;
  trace.add("layers.3", small_plan());
  std::string csv;
  write_csv(trace, [&csv](const std::string& text) { csv += text; });
  CHECK(csv ==
        "token,layer,rank,expert,weight\n0,layers.3,0,0,0.75\n0,layers.3,1,1,0.25\n1,layers.3,0,0,0.5\n1,layers.3,1,2,"
        "0.5\n"
        "2,layers.3,0,1,1\n2,layers.3,1,0,0.125\n");
  const auto json = to_json(trace.layers().front());
  CHECK(json.at("load") == nlohmann::json({3, 2, 1, 0}));
  CHECK(json.at("coactivation").at(1) == nlohmann::json({2, 2, 0, 0}));
  CHECK(json.at("dead_experts") == 0.25);
}

TEST_CASE("routing_trace: the picture is well-formed, for one layer, many, and no pairs at all", "[checkpoint]") {
  routing_trace trace;
  trace.add("layers.0", small_plan());
  CHECK(shared::testing::xml_fault(trace_picture(trace, {0}, "a <title> & more", "below")).empty());
  // Of expert 0's three tokens two also go to expert 1 and one to expert 2; its load is twice an even one.
  const std::string picture = trace_picture(trace, {0}, "t", "s");
  for (const char* const text : {">67<", ">33<", ">2.0<", ">0<", ">also go to expert<", ">of the tokens of expert<",
                                 ">layer<", ">an expert with itself: all of its tokens, so there is nothing to see<"})
    CHECK(picture.find(text) != std::string::npos);
  for (int l = 1; l < 9; ++l) trace.add("layers." + std::to_string(l), small_plan());
  CHECK(shared::testing::xml_fault(trace_picture(trace, {0, 1, 2, 3, 4, 5, 6, 7, 8}, "t", "s")).empty());
  sluice::sparse_plan<float> alone;
  alone.reset(2, 1);
  alone.add(0, 0, 1);
  alone.finish();
  routing_trace single;
  single.add("layers.0", alone);
  CHECK(shared::testing::xml_fault(trace_picture(single, {0}, "t", "s")).empty());
}
