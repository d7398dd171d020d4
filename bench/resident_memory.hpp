/// Resident memory of this process, in bytes; zeros where the system does not say (only Linux does).
#pragma once

#include <fstream>
#include <sstream>
#include <string>

namespace bench {

struct resident_memory {
  double now = 0;
  double peak = 0;  ///< since the process began
};

inline resident_memory read_resident_memory() {
  resident_memory found;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    std::istringstream words(line);
    std::string key;
    double kilobytes = 0;
    if (!(words >> key >> kilobytes)) continue;
    if (key == "VmRSS:") found.now = 1024 * kilobytes;
    if (key == "VmHWM:") found.peak = 1024 * kilobytes;
  }
  return found;
}

}  // namespace bench
