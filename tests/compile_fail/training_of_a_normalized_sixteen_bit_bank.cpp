// expect: sluice: weights in this storage, such as bfloat16_storage, are only read: train with full_precision and convert afterwards
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/normalized_bank.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/top_k.hpp>

using namespace sluice;

using bank_type = normalized_bank<expert_bank<swiglu<float, bfloat16_storage>>, rms_norm<float>>;
using layer_type = moe_layer<top_k_router<float>, bank_type>;

void use(layer_type& layer, const matrix<float>& dy, matrix<float>& dx, layer_type::tape& tape) {
  layer.backward(dy, dx, tape);
}
