// expect: sluice: a mean over draws runs every expert on all tokens
#include <sluice/attention/self_attention.hpp>
#include <sluice/layer/encoders/network_bank.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/over_draws.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>

using attentions = sluice::network_bank<sluice::self_attention<float>>;
sluice::over_draws<sluice::moe_layer<sluice::dense_softmax_router<float>, attentions>> workspace;
