#include <sluice/kernel/config.hpp>

#include "../support.hpp"

#include <string>
#include <typeinfo>

using namespace sluice;

TEST_CASE("config: agrees with the kernels, the version and the compiler", "[kernel][config]") {
  constexpr configuration c = config();
  static_assert(c.vector_bytes == c.float_lanes * int(sizeof(float)) &&
                c.vector_bytes == c.double_lanes * int(sizeof(double)));
  CHECK(c.float_lanes == kernel::simd_width<float>);
  CHECK(std::string(c.version) == std::to_string(SLUICE_VERSION_MAJOR) + "." + std::to_string(SLUICE_VERSION_MINOR) +
                                      "." + std::to_string(SLUICE_VERSION_PATCH));
  CHECK(std::string(c.architecture) == xsimd::default_arch::name());
#if defined(_OPENMP)
  CHECK(c.openmp);
#else
  CHECK_FALSE(c.openmp);
#endif
#if defined(SLUICE_TEST_WITH_TBB)
  CHECK(c.tbb);
#endif
#if defined(__AVX512BW__)
  CHECK(c.vector_bytes == 64);
#elif defined(__AVX2__)
  CHECK(c.vector_bytes == 32);
#elif defined(__SSE2__) || defined(__aarch64__)
  CHECK(c.vector_bytes == 16);
#endif
  CHECK(c == config());
}

TEST_CASE("config: the name of the instruction set is the one in the symbols", "[kernel][config]") {
  CHECK(std::string(typeid(configuration).name()).find(config().isa) != std::string::npos);
}

TEST_CASE("config: one line for people", "[kernel][config]") {
  constexpr configuration plain{.version = "1.2.3",
                                .isa = "avx2_fma",
                                .architecture = "fma3+avx2",
                                .vector_bytes = 32,
                                .float_lanes = 8,
                                .double_lanes = 4,
                                .fast_math = false,
                                .openmp = false,
                                .tbb = false};
  CHECK(to_string(plain) ==
        "sluice 1.2.3, avx2_fma (xsimd fma3+avx2), 32-byte vectors: 8 float, 4 double, executors serial threads");
  configuration other = plain;
  other.fast_math = other.openmp = other.tbb = true;
  CHECK(to_string(other) ==
        "sluice 1.2.3, avx2_fma (xsimd fma3+avx2), 32-byte vectors: 8 float, 4 double, fast math, executors serial "
        "threads openmp tbb");
}
