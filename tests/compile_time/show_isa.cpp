// Prints the instruction set that this build of the tests runs on.
#include <sluice/kernel/config.hpp>

#include <cstdio>

int main() {
  constexpr sluice::configuration c = sluice::config();
  std::printf("xsimd architecture: %s, sluice instruction set: %s\n", c.architecture, c.isa);
  std::printf("%s\n", to_string(c).c_str());
  return 0;
}
