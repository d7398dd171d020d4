// expect: sluice: experts that mix tokens have no rows in common for several gates
#include <sluice/attention/self_attention.hpp>
#include <sluice/layer/encoders/network_bank.hpp>
#include <sluice/layer/multi_gate.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>

const sluice::network_bank attentions{2, sluice::self_attention<float>{6, {.heads = 2}}};
sluice::multi_gate_layer layer{std::vector(2, sluice::dense_softmax_router<float>{6, 2}), attentions};
