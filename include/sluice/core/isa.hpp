/// Names the instruction set that this source is compiled for, as an inline namespace around everything in sluice.
///
/// Two sources of one program may be built with different flags (say SSE2 and AVX-512). Without this tag the linker
/// would merge their inline functions and one half of the program would run the other half's instructions. Users never
/// write the name: it is an inline namespace. Options that change what functions do without changing the instruction
/// set are part of the name for the same reason: -ffast-math, and -fno-exceptions, whose functions neither throw nor
/// clean up after others' exceptions. (-fopenmp is not: openmp_executor alone depends on it, and is another type.) One
/// name stands for a whole generation of processors: avx2_fma also for BMI and F16C, which every processor with AVX2
/// and FMA has.
///
/// Eigen and the standard library have no such names, so where a program has to run on a processor that lacks one of
/// its instruction sets, build the sources as variants: core/variant.hpp.
#pragma once

#if __cplusplus < 202002L && (!defined(_MSVC_LANG) || _MSVC_LANG < 202002L)
#error sluice needs C++20: compile with -std=c++20 or newer, in CMake target_compile_features(... cxx_std_20)
// A file that is not there ends the compilation: thousands of errors would follow.
#define SLUICE_NEEDS_CPP20 <sluice/needs_cpp20>
#include SLUICE_NEEDS_CPP20
#endif

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define SLUICE_ISA_BASE avx512vnni
#elif defined(__AVX512BW__) && defined(__AVX512DQ__)
#define SLUICE_ISA_BASE avx512bw
#elif defined(__AVX512F__)
#define SLUICE_ISA_BASE avx512f
#elif defined(__AVX2__) && defined(__FMA__)
#define SLUICE_ISA_BASE avx2_fma
#elif defined(__AVX2__)
#define SLUICE_ISA_BASE avx2
#elif defined(__FMA4__)
#define SLUICE_ISA_BASE avx_fma4
#elif defined(__AVX__) && defined(__FMA__)
#define SLUICE_ISA_BASE avx_fma
#elif defined(__AVX__)
#define SLUICE_ISA_BASE avx
#elif defined(__SSE4_2__)
#define SLUICE_ISA_BASE sse4_2
#elif defined(__SSE4_1__)
#define SLUICE_ISA_BASE sse4_1
#elif defined(__SSSE3__)
#define SLUICE_ISA_BASE ssse3
#elif defined(__SSE3__)
#define SLUICE_ISA_BASE sse3
#elif defined(__SSE2__) || defined(_M_X64)
#define SLUICE_ISA_BASE sse2
#elif defined(__aarch64__) || defined(_M_ARM64)
#define SLUICE_ISA_BASE neon64
#elif defined(__ARM_NEON)
#define SLUICE_ISA_BASE neon
#else
#define SLUICE_ISA_BASE generic
#endif

#define SLUICE_ISA_JOIN(a, b) a##b
#define SLUICE_ISA_SUFFIX(a, b) SLUICE_ISA_JOIN(a, b)
#if defined(__FAST_MATH__)
#define SLUICE_ISA_ARITHMETIC SLUICE_ISA_SUFFIX(SLUICE_ISA_BASE, _fast)
#else
#define SLUICE_ISA_ARITHMETIC SLUICE_ISA_BASE
#endif
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define SLUICE_ISA SLUICE_ISA_ARITHMETIC
#else
#define SLUICE_ISA SLUICE_ISA_SUFFIX(SLUICE_ISA_ARITHMETIC, _noexcept)
#endif

#define SLUICE_ISA_TEXT(x) #x
#define SLUICE_ISA_TEXT_OF(x) SLUICE_ISA_TEXT(x)
/// The same as a string literal.
#define SLUICE_ISA_NAME SLUICE_ISA_TEXT_OF(SLUICE_ISA)
