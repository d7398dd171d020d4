// The layer itself. This source is compiled once for every instruction set; only SLUICE_VARIANT_ENTRY(make_model) leaves it.
#include "model.hpp"

#include <sluice/core/variant.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/kernel/config.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

namespace {

class moe_model final : public model {
public:
  explicit moe_model(unsigned seed) { sluice::initialize(layer_, seed); }

  void forward(const float* x, float* y, std::ptrdiff_t tokens) override {
    layer_.forward(Eigen::Map<const sluice::matrix<float>>(x, tokens, width),
                   Eigen::Map<sluice::matrix<float>>(y, tokens, width), workspace_);
  }
  std::string configuration() const override { return to_string(sluice::config()); }

private:
  sluice::moe_layer<sluice::top_k_router<float>, sluice::expert_bank<sluice::swiglu<float>>> layer_{
      sluice::top_k_router<float>{width, 8, {.top_k = 2}}, sluice::expert_bank<sluice::swiglu<float>>{8, width, 128}};
  decltype(layer_)::workspace workspace_;
};

}  // namespace

std::unique_ptr<model> SLUICE_VARIANT_ENTRY(make_model)(unsigned seed) { return std::make_unique<moe_model>(seed); }
