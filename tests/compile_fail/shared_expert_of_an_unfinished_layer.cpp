// expect: sluice: layer needs `void forward\(tokens_in<scalar> x, tokens_out<scalar> y, tape&
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/shared_expert.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { shared_expert_layer layer{layer_without_training{}, swiglu<float>{4, 3}}; }
