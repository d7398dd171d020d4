/// What the numbers were measured on and with, in words.
#pragma once

#include <sluice/kernel/config.hpp>
#include <sluice/kernel/simd.hpp>
#include <sluice/version.hpp>

#include <Eigen/Core>

#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(SLUICE_BENCH_WITH_ONEDNN)
#include <dnnl.h>
#endif

#include "caches.hpp"
#include "text.hpp"

// The build says what it compiles with.
#ifndef SLUICE_BENCH_COMPILER
#define SLUICE_BENCH_COMPILER "unknown"
#endif
#ifndef SLUICE_BENCH_FLAGS
#define SLUICE_BENCH_FLAGS "unknown"
#endif

namespace bench {

using facts = std::vector<std::pair<std::string, std::string>>;

/// The processor's name where the system tells it (Linux), or nothing.
inline std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) {
      const std::size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  return "unknown";
}

inline std::string version(int major, int minor, int patch) {
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
}

inline facts describe_environment(const cache_sizes& caches, int threads) {
  facts all;
  all.emplace_back("processor",
                   processor_name() + ", " + std::to_string(std::thread::hardware_concurrency()) + " cores");
  all.emplace_back("caches", "L2 " + megabytes(static_cast<double>(caches.l2)) + " a core, L3 " +
                                 megabytes(static_cast<double>(caches.l3)));
  all.emplace_back("threads", std::to_string(threads));
  all.emplace_back("compiler", SLUICE_BENCH_COMPILER);
  all.emplace_back("flags", "`" SLUICE_BENCH_FLAGS "`");
  all.emplace_back("xsimd architecture", std::string(sluice::config().architecture) + " (" +
                                             std::to_string(sluice::kernel::simd_width<float>) + " floats a vector)");
  all.emplace_back("xsimd", version(XSIMD_VERSION_MAJOR, XSIMD_VERSION_MINOR, XSIMD_VERSION_PATCH));
  all.emplace_back("Eigen", version(EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION));
#if defined(SLUICE_BENCH_WITH_ONEDNN)
  const dnnl_version_t* onednn = dnnl_version();
  all.emplace_back("oneDNN", version(onednn->major, onednn->minor, onednn->patch));
#else
  all.emplace_back("oneDNN", "not found");
#endif
  return all;
}

}  // namespace bench
