#include <Eigen/Core>
#include <xsimd/xsimd.hpp>
