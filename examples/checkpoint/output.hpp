/// Where results go: files that are replaced as a whole or not at all, or what is no regular file, written as it is.
#pragma once

#include <sluice/io/atomic_file.hpp>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

namespace checkpoint {

namespace detail {

/// /dev/null, a pipe, a terminal: a rename would replace it by a file.
inline bool is_special(const std::filesystem::path& path) {
  std::error_code ignored;
  const auto status = std::filesystem::status(path, ignored);
  return std::filesystem::exists(status) && !std::filesystem::is_regular_file(status) &&
         !std::filesystem::is_directory(status);
}

}  // namespace detail

/// Throws now what writing would throw after minutes of work.
inline void require_writable(const std::filesystem::path& path, bool special_allowed = true) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) throw sluice::file_error(path.string(), "is a folder");
  if (!detail::is_special(path))
    sluice::atomic_file probe(path);  // removes its temporary file again
  else if (!special_allowed)
    throw sluice::file_error(path.string(), "is not a regular file");
}

/// Text for a file of its own.
class text_file {
public:
  explicit text_file(const std::filesystem::path& path) : name_(path.string()) {
    if (detail::is_special(path))
      stream_.open(path, std::ios::binary);
    else
      file_.emplace(path);
  }

  void write(std::string_view text) {
    if (file_) return file_->write(std::as_bytes(std::span(text)));
    stream_.write(text.data(), static_cast<std::streamsize>(text.size()));
  }

  void commit() {
    if (file_) return file_->commit();
    stream_.close();
    if (!stream_) throw sluice::file_error(name_, "cannot be written");
  }

private:
  std::string name_;
  std::optional<sluice::atomic_file> file_;
  std::ofstream stream_;
};

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  text_file file(path);
  file.write(text);
  file.commit();
}

}  // namespace checkpoint
