/// The text that models learn from: read, split, and cut into windows.
///
/// A token is a byte, so any file will do. Of a folder every tenth file (in the order of their names) is kept out for
/// validation, of a single file the last tenth.
#pragma once

#include <sluice/core/random.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shared/error.hpp"
#include "shared/file.hpp"

namespace language_model {

using sluice::index_t;

inline constexpr index_t byte_values = 256;

struct corpus {
  std::string training, validation;
};

namespace detail {

inline constexpr std::size_t largest_text = std::size_t{1} << 30;

/// Files of a folder and of all folders in it, ordered alike on every machine.
inline std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (auto entry = std::filesystem::recursive_directory_iterator(folder, error);
       !error && entry != std::filesystem::recursive_directory_iterator(); entry.increment(error))
    if (entry->is_regular_file() && entry->file_size() > 0) files.push_back(entry->path().generic_string());
  if (error) throw shared::input_error(folder + ": cannot read the folder: " + error.message());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace detail

/// Reads a file or all files of a folder. Throws input_error if there is less than a window of `length` + 1 bytes to
/// learn from or to be measured on.
inline corpus read_corpus(const std::string& path, index_t length) {
  corpus c;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    const auto files = detail::files_in(path);
    for (std::size_t i = 0; i < files.size(); ++i) {
      const std::string text = shared::read_file(files[i], detail::largest_text);
      ((i + 1) % 10 == 0 ? c.validation : c.training) += text;
    }
  } else {
    const std::string text = shared::read_file(path, detail::largest_text);
    const std::size_t kept = text.size() - text.size() / 10;
    c.training = text.substr(0, kept);
    c.validation = text.substr(kept);
  }
  const auto needed = static_cast<std::size_t>(length) + 1;
  if (c.training.size() < needed || c.validation.size() < needed)
    throw shared::input_error(path + ": too short: " + std::to_string(c.training.size()) + " bytes to learn from and " +
                              std::to_string(c.validation.size()) + " for validation, where a window takes " +
                              std::to_string(needed));
  return c;
}

/// Windows of one length, a token after the other: what a model reads, and the byte that follows each.
struct batch {
  std::vector<index_t> ids, next;
  std::vector<index_t> borders;  ///< of the windows

  void clear() {
    ids.clear(), next.clear();
    borders.assign(1, 0);
  }
  void add(std::string_view text, std::size_t begin, index_t length) {
    for (std::size_t i = begin; i < begin + static_cast<std::size_t>(length); ++i) {
      ids.push_back(static_cast<unsigned char>(text[i]));
      next.push_back(static_cast<unsigned char>(text[i + 1]));
    }
    borders.push_back(static_cast<index_t>(ids.size()));
  }
};

/// Windows of the training text at random places, which depend on seed and step alone.
inline void draw_batch(std::string_view text, index_t windows, index_t length, const sluice::random_source& random,
                       batch& b) {
  constexpr sluice::random_site site{"language_model.window"};
  const std::size_t places = text.size() - static_cast<std::size_t>(length);
  b.clear();
  for (index_t i = 0; i < windows; ++i)
    b.add(text, static_cast<std::size_t>(random.uniform(site, i) * static_cast<double>(places)), length);
}

/// Where windows for validation begin: at most `most`, evenly over the text, one behind the other if there are fewer.
inline std::vector<std::size_t> window_starts(std::size_t size, index_t length, index_t most) {
  const std::size_t all = (size - 1) / static_cast<std::size_t>(length);
  const std::size_t count = std::min(all, static_cast<std::size_t>(most));
  std::vector<std::size_t> starts;
  for (std::size_t i = 0; i < count; ++i) starts.push_back(i * all / count * static_cast<std::size_t>(length));
  return starts;
}

}  // namespace language_model
