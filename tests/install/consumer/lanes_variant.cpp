#include "lanes.hpp"

#include <sluice/core/variant.hpp>
#include <sluice/kernel/config.hpp>

int SLUICE_VARIANT_ENTRY(lanes)() { return sluice::config().float_lanes; }
