/// Rows of words as aligned columns: the first column to the left, the others to the right.
#pragma once

#include <algorithm>
#include <cstddef>
#include <ostream>
#include <string>
#include <vector>

namespace checkpoint {

/// The first row is the head. All rows have as many words.
inline void print_aligned(std::ostream& out, const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> width(rows.front().size(), 0);
  for (const auto& row : rows)
    for (std::size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], row[c].size());
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      const std::string gap(width[c] - rows[r][c].size(), ' ');
      line += c == 0 ? rows[r][c] + gap : "  " + gap + rows[r][c];
    }
    out << line << '\n';
    if (r == 0) out << std::string(line.size(), '-') << '\n';
  }
}

}  // namespace checkpoint
