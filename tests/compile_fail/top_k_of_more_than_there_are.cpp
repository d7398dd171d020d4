// expect: sluice: top_k_router needs 1 <= TopK <= Experts
#include <sluice/router/top_k.hpp>

sluice::top_k_router<float, 4, 5> router{64};
