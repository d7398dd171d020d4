/// What this source is compiled for: version, instruction set, vector width, arithmetic and executors, for programs
/// that print what they run and for bug reports.
///
///   std::puts(to_string(sluice::config()).c_str());
///   sluice 0.1.0, avx2_fma (xsimd fma3+avx2), 32-byte vectors: 8 float, 4 double, executors serial threads openmp
///
/// The answer is a constant of the source that asks: in a program with several instruction sets each of them gets its
/// own.
#pragma once

#include <sluice/kernel/simd.hpp>
#include <sluice/version.hpp>

#include <string>

namespace sluice::inline SLUICE_ISA {

/// Every member is known at compile time; the texts live as long as the program.
struct configuration {
  const char* version;       ///< "major.minor.patch" of sluice
  const char* isa;           ///< instruction set as sluice's symbols name it, such as "avx512bw" or "avx2_fma_fast"
  const char* architecture;  ///< the same as xsimd calls it, such as "avx512bw" or "fma3+avx2"
  int vector_bytes;          ///< width of a vector register that the kernels use
  int float_lanes;
  int double_lanes;
  bool fast_math;  ///< -ffast-math: results differ from those of other sources by rounding
  bool openmp;     ///< openmp_executor uses threads; without -fopenmp it is serial
  bool tbb;        ///< oneTBB's headers are there, so exec/tbb.hpp can be included

  friend constexpr bool operator==(const configuration&, const configuration&) = default;
};

/// Evaluated by the compiler alone, so that no two sources can share one answer.
consteval configuration config() noexcept {
  return {
    .version = version, .isa = SLUICE_ISA_NAME, .architecture = xsimd::default_arch::name(),
    .vector_bytes = static_cast<int>(sizeof(kernel::simd<float>)),
    .float_lanes = static_cast<int>(kernel::simd_width<float>),
    .double_lanes = static_cast<int>(kernel::simd_width<double>),
#if defined(__FAST_MATH__)
    .fast_math = true,
#else
    .fast_math = false,
#endif
#if defined(_OPENMP)
    .openmp = true,
#else
    .openmp = false,
#endif
#if __has_include(<oneapi/tbb/parallel_for.h>)
    .tbb = true,
#else
    .tbb = false,
#endif
  };
}

/// One line for people.
inline std::string to_string(const configuration& c) {
  std::string text = "sluice ";
  text += c.version;
  text += ", ";
  text += c.isa;
  text += " (xsimd ";
  text += c.architecture;
  text += "), " + std::to_string(c.vector_bytes) + "-byte vectors: " + std::to_string(c.float_lanes) + " float, " +
          std::to_string(c.double_lanes) + " double";
  if (c.fast_math) text += ", fast math";
  text += ", executors serial threads";
  if (c.openmp) text += " openmp";
  if (c.tbb) text += " tbb";
  return text;
}

}  // namespace sluice::inline SLUICE_ISA
