// expect: sluice: expert bank needs `index_t experts\(\) const`
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/top_k.hpp>

using namespace sluice;

struct my_bank {
  using scalar = float;
  struct tape {};
  index_t inputs() const { return 4; }
  index_t outputs() const { return 4; }
};

void use() { moe_layer layer{top_k_router<float>{4, 2}, my_bank{}}; }
