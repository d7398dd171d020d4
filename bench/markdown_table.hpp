/// A table of Markdown; its cells are padded so that the source reads as a table too.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace bench {

class table {
public:
  explicit table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  bool empty() const { return rows_.size() == 1; }

  std::string text() const {
    std::vector<std::size_t> width(rows_.front().size(), 3);
    for (const auto& row : rows_)
      for (std::size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], row[c].size());
    std::string out;
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      for (std::size_t c = 0; c < rows_[r].size(); ++c) {
        const std::string pad(width[c] - rows_[r][c].size(), ' ');
        out += c == 0 ? "| " + rows_[r][c] + pad : " | " + pad + rows_[r][c];
      }
      out += " |\n";
      if (r != 0) continue;
      for (std::size_t c = 0; c < width.size(); ++c)
        out += c == 0 ? "| " + std::string(width[c], '-') : " | " + std::string(width[c] - 1, '-') + ":";
      out += " |\n";
    }
    return out + "\n";
  }

private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace bench
