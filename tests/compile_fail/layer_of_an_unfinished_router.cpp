// expect: sluice: router needs `void route\(
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

using namespace sluice;

struct my_router {
  using scalar = float;
  using plan = sparse_plan<float>;
  struct tape {};
  index_t inputs() const { return 4; }
  index_t experts() const { return 2; }
};

void use() { moe_layer layer{my_router{}, expert_bank<swiglu<float>>{2, 4, 3}}; }
