// expect: sluice: the scalar of routers, experts and layers is float or double
#include <sluice/router/tokens_choose/top_k.hpp>

sluice::top_k_router<int> router{8, 4};
