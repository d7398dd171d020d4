/// mapped_file: the bytes of a file, read-only, for as long as the object lives.
///
/// On POSIX systems the file is mapped, so a model larger than memory can be opened and only what is read is loaded;
/// elsewhere (or with SLUICE_PORTABLE_FILES defined) it is read into memory. Only regular files are accepted: a pipe or
/// a device has no size to check. An empty file gives an empty span. Moving the object does not move the bytes.
/// The caller keeps other processes from shortening a mapped file: reading past its new end ends the program (SIGBUS).
/// Files replaced by rename, as atomic_file does, are safe: the mapping keeps the old file.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/file_error.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#if (defined(__unix__) || defined(__APPLE__)) && !defined(SLUICE_PORTABLE_FILES)
#define SLUICE_POSIX_FILES 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#define SLUICE_POSIX_FILES 0
#include <fstream>
#endif

namespace sluice::inline SLUICE_ISA {

class mapped_file {
public:
  mapped_file() = default;
  explicit mapped_file(const std::filesystem::path& path);

  mapped_file(mapped_file&& other) noexcept
      : memory_(std::move(other.memory_)), bytes_(std::exchange(other.bytes_, {})) {}

  mapped_file& operator=(mapped_file&& other) noexcept {
    if (this != &other) {
      unmap();
      memory_ = std::move(other.memory_);
      bytes_ = std::exchange(other.bytes_, {});
    }
    return *this;
  }

  ~mapped_file() { unmap(); }

  std::span<const std::byte> bytes() const noexcept { return bytes_; }

private:
  void unmap() noexcept;

  std::vector<std::byte> memory_;  // only where files are not mapped
  std::span<const std::byte> bytes_;
};

#if SLUICE_POSIX_FILES

inline mapped_file::mapped_file(const std::filesystem::path& path) {
  const auto fail = [&path](const char* what, int error) -> file_error {
    return {path.string(), std::string(what) + ": " + std::generic_category().message(error)};
  };
  // O_NONBLOCK: opening a pipe must not wait for a writer before it can be refused.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw fail("cannot be opened", errno);
  struct closer {
    int descriptor;
    ~closer() { ::close(descriptor); }
  } const close_at_end{descriptor};

  struct stat status {};
  if (::fstat(descriptor, &status) != 0) throw fail("its size cannot be read", errno);
  if (!S_ISREG(status.st_mode)) throw file_error(path.string(), "is not a regular file");
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size > (std::numeric_limits<std::size_t>::max)() / 2)
    throw file_error(path.string(), "its " + std::to_string(size) + " bytes exceed the address space");
  if (size == 0) return;  // mmap refuses a length of 0

  void* const address = ::mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (address == MAP_FAILED) throw fail("cannot be mapped", errno);
  bytes_ = {static_cast<const std::byte*>(address), static_cast<std::size_t>(size)};
}

inline void mapped_file::unmap() noexcept {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  bytes_ = {};
}

#else

inline mapped_file::mapped_file(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    throw file_error(path.string(), error ? "cannot be opened: " + error.message() : "is not a regular file");
  std::ifstream in(path, std::ios::binary);
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (!in || error) throw file_error(path.string(), "cannot be opened");
  if (size > static_cast<std::uintmax_t>((std::numeric_limits<std::ptrdiff_t>::max)()))
    throw file_error(path.string(), "its " + std::to_string(size) + " bytes exceed the address space");
  memory_.resize(static_cast<std::size_t>(size));
  in.read(reinterpret_cast<char*>(memory_.data()), static_cast<std::streamsize>(size));
  if (static_cast<std::uintmax_t>(in.gcount()) != size)
    throw file_error(path.string(),
                     "ends after " + std::to_string(in.gcount()) + " of " + std::to_string(size) + " bytes");
  bytes_ = memory_;
}

inline void mapped_file::unmap() noexcept { bytes_ = {}; }

#endif

}  // namespace sluice::inline SLUICE_ISA
