// expect: sluice: gate needs .void backward
#include <sluice/router/threshold/relu.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { relu_router<float, gate_without_backward> router{gate_without_backward{}}; }
