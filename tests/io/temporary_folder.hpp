/// A folder of its own for each test, removed with all it holds at the end.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <system_error>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace sluice::test {

class temporary_folder {
public:
  explicit temporary_folder(const std::filesystem::path& parent = std::filesystem::temp_directory_path()) {
    static std::atomic<int> counter{0};
#if defined(__unix__) || defined(__APPLE__)
    const auto process = static_cast<long long>(::getpid());
#else
    const auto process = static_cast<long long>(std::chrono::system_clock::now().time_since_epoch().count());
#endif
    do {
      path_ = parent / ("sluice-test-" + std::to_string(process) + "-" + std::to_string(counter++));
    } while (!std::filesystem::create_directory(path_));
  }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;
  ~temporary_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

  std::size_t file_count() const {
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator()));
  }

private:
  std::filesystem::path path_;
};

/// A parent in memory, where there is one, for tests that would wait for a disk thousands of times.
inline std::filesystem::path memory_folder() {
#if defined(__unix__) || defined(__APPLE__)
  if (::access("/dev/shm", W_OK) == 0) return "/dev/shm";
#endif
  return std::filesystem::temp_directory_path();
}

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span<const char>(text));
}

}  // namespace sluice::test
