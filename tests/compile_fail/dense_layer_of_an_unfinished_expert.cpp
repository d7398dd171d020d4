// expect: sluice: expert needs `index_t outputs\(\) const`
#include <sluice/layer/dense.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { dense_layer layer{expert_without_outputs{}}; }
