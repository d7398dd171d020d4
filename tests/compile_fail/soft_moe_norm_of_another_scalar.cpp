// expect: sluice: Soft MoE's router and its norms need the same scalar
#include <sluice/router/every_expert/soft_moe.hpp>

sluice::soft_moe_router<float, sluice::rms_norm<double>> router{8, 4};
