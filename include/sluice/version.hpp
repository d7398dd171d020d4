/// The version of sluice: the one place where it is written. CMake and the packages read it from here.
#pragma once

#define SLUICE_VERSION_MAJOR 0
#define SLUICE_VERSION_MINOR 1
#define SLUICE_VERSION_PATCH 0

#define SLUICE_VERSION_TEXT(x) #x
#define SLUICE_VERSION_DOTTED(major, minor, patch) \
  SLUICE_VERSION_TEXT(major) "." SLUICE_VERSION_TEXT(minor) "." SLUICE_VERSION_TEXT(patch)

#include <sluice/core/isa.hpp>

namespace sluice::inline SLUICE_ISA {

/// "major.minor.patch", for programs that print what they were built with.
inline constexpr char version[] =
    SLUICE_VERSION_DOTTED(SLUICE_VERSION_MAJOR, SLUICE_VERSION_MINOR, SLUICE_VERSION_PATCH);

}  // namespace sluice::inline SLUICE_ISA

#undef SLUICE_VERSION_DOTTED
#undef SLUICE_VERSION_TEXT
