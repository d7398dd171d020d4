// expect: sluice: expert needs `index_t outputs\(\) const`
#include <sluice/layer/shared_expert.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { shared_expert_layer layer{whole_layer{}, expert_without_outputs{}}; }
