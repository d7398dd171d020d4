// expect: sluice: norm needs types `scalar` and `tape`
#include <sluice/layer/normalized.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { normalized_layer layer{whole_layer{}, norm_without_backward{}}; }
