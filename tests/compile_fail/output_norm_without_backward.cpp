// expect: sluice: norm needs types `scalar` and `tape`
#include <sluice/layer/output_normalized.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { output_normalized_layer layer{whole_layer{}, norm_without_backward{}}; }
