// expect: sluice: top_k_router needs 1 <= TopK <= Experts
#include <sluice/router/tokens_choose/top_k.hpp>

sluice::top_k_router<float, 4, 5> router{64};
