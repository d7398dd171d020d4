/// atomic_file: writes a file so that its name always leads to the whole old content or to the whole new content.
///
/// The bytes go to a temporary file in the same folder; commit() flushes it to the disk, renames it over the target and
/// flushes the folder. Whatever fails before the rename (a full disk, an exception, a killed process) leaves the old
/// file untouched; the temporary is removed unless the process was killed, in which case ".sluice-*.tmp" stays behind.
/// Only a folder that cannot be flushed is reported after the new content is in place, and the message says so.
/// The permissions of an existing target are kept, and a symbolic link is followed, so that the link stays a link.
/// Two writers of one target do not mix: the last rename wins. Off POSIX (or with SLUICE_PORTABLE_FILES defined) the
/// same steps use the standard library, which cannot flush to the disk: there the promise covers a killed process, not
/// a power cut.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/folder.hpp>
#include <sluice/io/mapped_file.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>

#if SLUICE_POSIX_FILES
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#include <chrono>
#include <fstream>
#endif

namespace sluice::inline SLUICE_ISA {

class atomic_file {
public:
  /// Creates the temporary file beside `target`. Throws file_error if it cannot.
  explicit atomic_file(const std::filesystem::path& target);
  atomic_file(const atomic_file&) = delete;
  atomic_file& operator=(const atomic_file&) = delete;
  ~atomic_file() { discard(); }

  void write(std::span<const std::byte> bytes);
  /// Makes what was written the content of the target; nothing may be written afterwards.
  void commit();
  /// Whether the target has the new content; true even if commit has thrown since the folder could not be flushed.
  bool committed() const noexcept { return temporary_.empty(); }

private:
  void discard() noexcept;

  [[noreturn]] void fail(const std::string& what, const std::error_code& error) const {
    throw file_error(target_.string(), what + ": " + error.message());
  }

  /// Unique among the threads of this process; other processes differ in `process` or are found by exclusive creation.
  std::filesystem::path temporary_name(std::uint64_t process) const {
    static std::atomic<std::uint64_t> counter{0};
    return target_.parent_path() /
           (".sluice-" + std::to_string(process) + "-" + std::to_string(counter.fetch_add(1)) + ".tmp");
  }

  static std::filesystem::path resolve(const std::filesystem::path& target) {
    std::error_code error;
    if (!std::filesystem::is_symlink(target, error)) return target;
    const std::filesystem::path resolved = std::filesystem::canonical(target, error);
    if (error) throw file_error(target.string(), "the symbolic link cannot be followed: " + error.message());
    return resolved;
  }

  std::filesystem::path target_;
  std::filesystem::path temporary_;  // empty when there is none to remove
#if SLUICE_POSIX_FILES
  int descriptor_ = -1;
#else
  std::ofstream stream_;
#endif
};

#if SLUICE_POSIX_FILES

inline atomic_file::atomic_file(const std::filesystem::path& target) : target_(resolve(target)) {
  for (int attempt = 0;; ++attempt) {
    std::filesystem::path name = temporary_name(static_cast<std::uint64_t>(::getpid()));
    descriptor_ = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ >= 0) {
      temporary_.swap(name);
      break;
    }
    const int error = errno;
    if (error != EEXIST || attempt == 1000)
      fail("no temporary file can be created beside it", {error, std::generic_category()});
  }
  struct stat old {};
  if (::stat(target_.c_str(), &old) == 0 && ::fchmod(descriptor_, old.st_mode & 07777U) != 0) {
    const int error = errno;
    discard();
    fail("its permissions cannot be kept", {error, std::generic_category()});
  }
}

inline void atomic_file::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    constexpr std::size_t most = std::size_t{1} << 30U;  // Linux writes at most 2 GiB a call, macOS refuses more
    const ::ssize_t written = ::write(descriptor_, bytes.data(), (std::min)(bytes.size(), most));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("cannot be written", {errno, std::generic_category()});
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

inline void atomic_file::commit() {
  if (const int error = detail::flush_descriptor(descriptor_); error != 0)
    fail("cannot be flushed to the disk", {error, std::generic_category()});
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (::close(descriptor) != 0 && errno != EINTR) fail("cannot be closed", {errno, std::generic_category()});

  const detail::folder_flusher folder(target_.parent_path());
  const int rename_error = ::rename(temporary_.c_str(), target_.c_str()) != 0 ? errno : 0;
  if (rename_error != 0) fail("the temporary file cannot be renamed to it", {rename_error, std::generic_category()});
  temporary_.clear();
  if (const int error = folder.flush(); error != 0)
    fail("has its new content, but its folder cannot be flushed to the disk", {error, std::generic_category()});
}

inline void atomic_file::discard() noexcept {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = -1;
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

#else

inline atomic_file::atomic_file(const std::filesystem::path& target) : target_(resolve(target)) {
  // The standard library has no exclusive creation and no process number: the clock keeps processes apart.
  const auto process = static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  std::filesystem::path name = temporary_name(process);
  stream_.open(name, std::ios::binary | std::ios::trunc);
  if (!stream_) throw file_error(target_.string(), "no temporary file can be created beside it");
  temporary_.swap(name);
}

inline void atomic_file::write(std::span<const std::byte> bytes) {
  stream_.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!stream_) throw file_error(target_.string(), "cannot be written");
}

inline void atomic_file::commit() {
  stream_.close();
  if (!stream_) throw file_error(target_.string(), "cannot be written");
  std::error_code error;
  const std::filesystem::file_status old = std::filesystem::status(target_, error);
  if (std::filesystem::is_regular_file(old)) std::filesystem::permissions(temporary_, old.permissions(), error);
  std::filesystem::rename(temporary_, target_, error);
  if (error) fail("the temporary file cannot be renamed to it", error);
  temporary_.clear();
}

inline void atomic_file::discard() noexcept {
  stream_.close();
  std::error_code error;
  if (!temporary_.empty()) std::filesystem::remove(temporary_, error);
  temporary_.clear();
}

#endif

}  // namespace sluice::inline SLUICE_ISA
