/// What the tutorial's model learns: a poem, its letters as numbers, and windows of it.
#pragma once

#include <sluice/core/types.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace tutorial {

using sluice::index_t;

/// Christina Rossetti, 1872.
inline constexpr std::string_view poem =
    "who has seen the wind?\n"
    "neither i nor you:\n"
    "but when the leaves hang trembling,\n"
    "the wind is passing through.\n"
    "\n"
    "who has seen the wind?\n"
    "neither you nor i:\n"
    "but when the trees bow down their heads,\n"
    "the wind is passing by.\n";

inline constexpr std::string_view alphabet = "\n ,.:?abcdefghijklmnopqrstuvwxyz";
inline constexpr index_t letters = static_cast<index_t>(alphabet.size());
inline constexpr index_t window = 6;  ///< letters that the model sees

inline index_t id_of(char letter) { return static_cast<index_t>(alphabet.find(letter)); }

/// The last `window` letters of a text as ids; line ends stand before its beginning.
inline std::vector<index_t> last_window(std::string_view text) {
  std::string padded(static_cast<std::size_t>(window), '\n');
  padded += text;
  std::vector<index_t> ids;
  for (const char letter : padded.substr(padded.size() - window)) ids.push_back(id_of(letter));
  return ids;
}

/// The poem as questions and answers: the window before each letter (T * window ids), and the letter (T).
struct lesson {
  std::vector<index_t> windows;
  std::vector<index_t> next;
};
inline lesson whole_poem() {
  lesson l;
  for (std::size_t i = 0; i < poem.size(); ++i) {
    for (const index_t id : last_window(poem.substr(0, i))) l.windows.push_back(id);
    l.next.push_back(id_of(poem[i]));
  }
  return l;
}

}  // namespace tutorial
