// Headers of others that nearly every test reads: precompiled, they are parsed once. Nothing of sluice, so that an edited header
// compiles only what includes it. Nothing that few tests read: what the inline functions of a precompiled header use is instantiated
// again for every source (for nlohmann/json.hpp that takes a second).
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <Eigen/Core>
#include <xsimd/xsimd.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>
