// expect: sluice: layer needs `void forward\(tokens_in<scalar> x, tokens_out<scalar> y, tape&
#include <sluice/layer/normalized.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { normalized_layer layer{layer_without_training{}, rms_norm<float>{4}}; }
