// expect: sluice: gate needs .void backward
#include <sluice/gate/standardized.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { standardized_gate gate{gate_without_backward{}}; }
