/// Run-time choice among variants of one piece of code, each compiled for another instruction set and all linked into
/// one program. The CMake function sluice_add_variants builds them and writes the list that is chosen from:
///
///   CMake     sluice_add_variants(model SOURCES model_variant.cpp ENTRY make_model TYPE model_factory HEADER model.hpp
///                                 ISAS sse2 avx2 avx512)
///   model.hpp          using model_factory = std::unique_ptr<model>();            // what every variant offers
///   model_variant.cpp  SLUICE_VARIANT_ENTRY(make_model)                      // defined once, compiled once a variant
///   main.cpp           #include <make_model_variants.hpp>                          // generated
///                      sluice::best_variant(make_model_variants).entry();
///
/// Whatever crosses the border between a variant and the program is laid out alike on both sides: numbers, pointers,
/// classes of the standard library, abstract classes of your own. Eigen's matrices are not (their alignment follows the
/// instruction set), and every type of sluice is another type in every variant.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/isa.hpp>

#include <cstddef>
#include <string_view>

#define SLUICE_VARIANT_JOIN(name, variant) name##_##variant
#define SLUICE_VARIANT_NAME(name, variant) SLUICE_VARIANT_JOIN(name, variant)

/// Names the entry of this variant: `name_avx2` in the source that is compiled as variant avx2. Only this symbol leaves
/// it.
#if defined(SLUICE_VARIANT)
#define SLUICE_VARIANT_ENTRY(name) SLUICE_VARIANT_NAME(name, SLUICE_VARIANT)
#else
#define SLUICE_VARIANT_ENTRY(name) name
#endif

namespace sluice::inline SLUICE_ISA {

#if defined(SLUICE_VARIANT_ISA)
// A flag after the variant's own, such as a late -march=native, would make a variant that its own CPU cannot run.
static_assert(std::string_view(SLUICE_ISA_TEXT_OF(SLUICE_ISA_BASE)) == SLUICE_ISA_TEXT_OF(SLUICE_VARIANT_ISA),
              "sluice: this variant is compiled with flags of another instruction set");
#endif

/// Whether this machine (processor and operating system) runs the variant of that name: sse2, sse4, avx2, avx512,
/// avx512vnni or neon64. Any other name is false.
inline bool cpu_runs(std::string_view isa) noexcept {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();  // static objects may ask before the runtime library has looked
  if (isa == "sse2") return true;
  if (isa == "sse4") return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == "avx2") return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq");
  if (isa == "avx512") return avx512;
  if (isa == "avx512vnni") return avx512 && __builtin_cpu_supports("avx512vnni");
  return false;
#elif defined(__aarch64__)
  return isa == "neon64";
#else
  return static_cast<void>(isa), false;
#endif
}

/// One row of a generated list.
template <typename Entry>
struct isa_variant {
  const char* isa;  ///< as in the list ISAS of sluice_add_variants
  Entry* entry;     ///< only to be used if available()

  bool available() const noexcept { return cpu_runs(isa); }
};

/// The last of a list (generated lists go from the least to the most capable) that this machine runs. Throws
/// std::invalid_argument if it runs none, which a list that holds the architecture's baseline rules out.
template <typename Entry, std::size_t N>
const isa_variant<Entry>& best_variant(const isa_variant<Entry> (&variants)[N]) {
  for (std::size_t i = N; i > 0; --i)
    if (variants[i - 1].available()) return variants[i - 1];
  throw_invalid("this machine runs none of the ", N, " variants that the program holds; the least capable needs ",
                variants[0].isa);
}

}  // namespace sluice::inline SLUICE_ISA
