// expect: sluice: layer needs `void forward\(tokens_in<scalar> x, tokens_out<scalar> y, tape&
#include <sluice/layer/output_bias.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { output_bias_layer layer{layer_without_training{}}; }
