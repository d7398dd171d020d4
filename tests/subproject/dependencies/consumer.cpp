#include <sluice/kernel/config.hpp>

int main() { return sluice::config().float_lanes > 0 ? 0 : 1; }
