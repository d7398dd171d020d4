// Prints the instruction set that this build of the tests runs on.
#include <sluice/core/isa.hpp>

#include <cstdio>
#include <xsimd/xsimd.hpp>

#define SHOW_ISA_TEXT(x) #x
#define SHOW_ISA(x) SHOW_ISA_TEXT(x)

int main() {
  std::printf("xsimd architecture: %s, sluice instruction set: %s\n", xsimd::default_arch::name(),
              SHOW_ISA(SLUICE_ISA));
  return 0;
}
