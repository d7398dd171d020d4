// The least that a user's program does: include everything, and be of the version that was installed.
#include <sluice/sluice.hpp>

#include <cstdio>

int main() {
  std::printf("sluice %s\n", sluice::version);
  return sluice::version[0] == '0' + SLUICE_VERSION_MAJOR ? 0 : 1;
}
