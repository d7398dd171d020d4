/// Reads whole files, and writes whole files or nothing: readers see the old file or the new one, never half of it.
#pragma once

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <string_view>
#include <system_error>

#include "error.hpp"

namespace shared {

/// The whole of a file that is not empty and not larger than `largest` bytes: /dev/zero must not eat the memory. Throws
/// input_error.
inline std::string read_file(const std::string& path, std::size_t largest) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw input_error(path + ": cannot open the file");
  std::string text;
  char block[1 << 16];
  while (in.read(block, sizeof block), in.gcount() > 0) {
    text.append(block, static_cast<std::size_t>(in.gcount()));
    if (text.size() > largest) throw input_error(path + ": larger than " + std::to_string(largest >> 20) + " MiB");
  }
  if (in.bad()) throw input_error(path + ": cannot read the file");
  if (text.empty()) throw input_error(path + ": the file is empty");
  return text;
}

/// Puts `text` into a new file beside `path`, then gives it that name. Throws input_error with the system's reason.
/// A link is followed; what is no regular file (/dev/null, a pipe) is written to as it is, for a name is all that a
/// rename would leave of it. With rename = false nothing changes: it only finds out whether a later call can succeed.
inline void write_file(const std::string& path, std::string_view text, bool rename = true) {
  namespace fs = std::filesystem;
  const auto fail = [&](const std::string& reason) { throw input_error(path + ": cannot write the file: " + reason); };
  std::error_code error, ignored;
  const bool exists = fs::exists(path, ignored);
  if (fs::is_directory(path, ignored)) fail("it is a folder");
  const bool special = exists && !fs::is_regular_file(path, ignored);
  if (special && !rename) return;

  const fs::path target = exists && !special ? fs::canonical(path, ignored) : fs::path(path);
  const fs::path draft =
      special ? target : fs::path(target.string() + "." + std::to_string(std::random_device{}()) + ".tmp");
  errno = 0;
  std::ofstream out(draft, std::ios::binary);
  if (!out) fail(std::strerror(errno));
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  out.close();
  const bool complete = !out.fail();
  const std::string reason = std::strerror(errno);
  if (special && !complete) fail(reason);
  if (special) return;
  if (complete && rename) fs::rename(draft, target, error);
  if (!complete || !rename || error) fs::remove(draft, ignored);
  if (!complete) fail(reason);
  if (error) fail(error.message());
}

/// Throws input_error now if write_file(path, ...) would fail later, after a minute of training.
inline void require_writable(const std::string& path) { write_file(path, "", false); }

}  // namespace shared
