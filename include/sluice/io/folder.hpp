/// folder_names, folder_flusher and folder_to_fill: what a folder holds, when the disk knows of it, and one that goes
/// again where nothing came into it.
///
/// Off POSIX (or with SLUICE_PORTABLE_FILES defined) the standard library lists the folder, and nothing is flushed.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/mapped_file.hpp>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <system_error>
#include <utility>

#if SLUICE_POSIX_FILES
#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>
#endif

namespace sluice::inline SLUICE_ISA::detail {

/// Flushes to the disk what a folder says of its files. It is opened before they change, so that afterwards nothing can
/// fail for want of memory. A folder that may be written but not read cannot be opened, and so not flushed.
class folder_flusher {
public:
  explicit folder_flusher(const std::filesystem::path& folder);
  folder_flusher(const folder_flusher&) = delete;
  folder_flusher& operator=(const folder_flusher&) = delete;
  ~folder_flusher();

  /// An error number, or 0: also where folders are not flushed.
  int flush() const noexcept;

private:
#if SLUICE_POSIX_FILES
  int descriptor_;
#endif
};

/// A folder for files to come, created if need be. One that is new, and still empty at the end, is removed.
class folder_to_fill {
public:
  /// Throws file_error.
  explicit folder_to_fill(std::filesystem::path folder) : folder_(std::move(folder)) {
    std::error_code error;
    is_new_ = std::filesystem::create_directories(folder_, error);
    if (error) throw file_error(folder_.string(), "the folder cannot be created: " + error.message());
  }
  folder_to_fill(const folder_to_fill&) = delete;
  folder_to_fill& operator=(const folder_to_fill&) = delete;
  ~folder_to_fill() {
    std::error_code not_empty;
    if (is_new_) std::filesystem::remove(folder_, not_empty);
  }

private:
  std::filesystem::path folder_;
  bool is_new_ = false;
};

/// The names of everything in the folder. Throws file_error if it cannot be listed.
std::set<std::string> folder_names(const std::filesystem::path& folder);

#if SLUICE_POSIX_FILES

/// An error number, or 0.
inline int flush_descriptor(int descriptor) noexcept {
  int result = 0;
  do result = ::fsync(descriptor);
  while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

inline folder_flusher::folder_flusher(const std::filesystem::path& folder)
    : descriptor_(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {}

inline folder_flusher::~folder_flusher() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

inline int folder_flusher::flush() const noexcept {
  const int error = descriptor_ < 0 ? 0 : flush_descriptor(descriptor_);
  return error == EINVAL || error == ENOTSUP ? 0 : error;
}

// Not by std::filesystem::directory_iterator: that of GCC 12 ends the program where there is no memory.
inline std::set<std::string> folder_names(const std::filesystem::path& folder) {
  const auto fail = [&folder](int error) {
    throw file_error(folder.string(), "the folder cannot be listed: " + std::generic_category().message(error));
  };
  const auto close = [](DIR* opened) { ::closedir(opened); };
  const std::unique_ptr<DIR, decltype(close)> entries(::opendir(folder.c_str()), close);
  if (entries == nullptr) fail(errno);
  std::set<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* const entry = ::readdir(entries.get());
    if (entry == nullptr && errno != 0) fail(errno);
    if (entry == nullptr) break;
    names.insert(entry->d_name);
  }
  names.erase(".");
  names.erase("..");
  return names;
}

#else

inline folder_flusher::folder_flusher(const std::filesystem::path&) {}
inline folder_flusher::~folder_flusher() = default;
inline int folder_flusher::flush() const noexcept { return 0; }

inline std::set<std::string> folder_names(const std::filesystem::path& folder) {
  std::set<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entry(folder, error);
  for (const std::filesystem::directory_iterator end; !error && entry != end; entry.increment(error))
    names.insert(entry->path().filename().string());
  if (error) throw file_error(folder.string(), "the folder cannot be listed: " + error.message());
  return names;
}

#endif

}  // namespace sluice::inline SLUICE_ISA::detail
