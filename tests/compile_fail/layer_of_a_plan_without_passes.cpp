// expect: sluice: plan needs `routed_rows<scalar> routed\(\) const`, or functions in its namespace
#include <sluice/expert/bank.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/layer/moe_layer.hpp>

struct my_plan {
  using scalar = float;
  struct gradient {};
  sluice::index_t tokens() const { return 0; }
  sluice::index_t experts() const { return 2; }
  sluice::index_t rows() const { return 0; }
  sluice::index_t most_rows() const { return 0; }
  sluice::expert_rows by_expert() const { return {}; }
  std::span<const sluice::index_t> invalid_tokens() const { return {}; }
};

struct my_router {
  using scalar = float;
  using plan = my_plan;
  struct tape {};
  sluice::index_t inputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  void route(sluice::tokens_in<float>, const sluice::routing_context<float>&, plan&, tape&) const {}
};

void use() { sluice::moe_layer layer{my_router{}, sluice::expert_bank<sluice::identity_expert<float>>{2, 4}}; }
