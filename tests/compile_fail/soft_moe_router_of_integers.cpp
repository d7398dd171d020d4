// expect: sluice: the scalar of routers, experts and layers is float or double
#include <sluice/router/every_expert/soft_moe.hpp>

sluice::soft_moe_router<int> router{8, 4};
