#include <sluice/checkpoint/expert_layout.hpp>

#include "../support.hpp"

#include <map>

using namespace sluice;

namespace {

using arrangement = expert_layout::gate_and_up;

constexpr expert_extent sizes{3, 4, 5};  // E, H, D

}  // namespace

TEST_CASE("expert_layout: where published files have a matrix", "[checkpoint]") {
  const expert_layout apart{"per-expert", "e.{}.g", "e.{}.u", "e.{}.d"};
  CHECK_FALSE(apart.is_stacked());
  tensor_place p = apart.place("m.", 2, "up", sizes);
  CHECK(p.tensor == "m.e.2.u");
  CHECK(p.shape == std::vector<std::int64_t>{4, 5});
  CHECK((p.offset == 0 && p.row_stride == 5 && p.col_stride == 1));

  const expert_layout stacked{"stacked", "gu", "", "d", arrangement::concatenated};
  p = stacked.place("", 2, "gate", sizes);
  CHECK(p.shape == std::vector<std::int64_t>{3, 8, 5});
  CHECK((p.offset == 2 * 40 && p.row_stride == 5 && p.col_stride == 1));
  p = stacked.place("", 2, "up", sizes);
  CHECK(p.tensor == "gu");
  CHECK((p.offset == 2 * 40 + 4 * 5 && p.row_stride == 5));
  p = stacked.place("", 1, "down", sizes);
  CHECK(p.shape == std::vector<std::int64_t>{3, 5, 4});
  CHECK((p.offset == 20 && p.row_stride == 4));

  const expert_layout turned{"stacked", "gu", "", "d", arrangement::concatenated, true};
  p = turned.place("", 1, "up", sizes);
  CHECK(p.shape == std::vector<std::int64_t>{3, 5, 8});
  CHECK((p.offset == 40 + 4 && p.row_stride == 1 && p.col_stride == 8));
  p = turned.place("", 1, "down", sizes);
  CHECK(p.shape == std::vector<std::int64_t>{3, 4, 5});
  CHECK((p.offset == 20 && p.row_stride == 1 && p.col_stride == 5));

  const expert_layout by_turns{"stacked", "gu", "", "d", arrangement::interleaved, true, "gub", "db"};
  p = by_turns.place("", 1, "up", sizes);
  CHECK((p.offset == 40 + 1 && p.row_stride == 2 && p.col_stride == 8));
  p = by_turns.place("", 2, "up_bias", sizes);
  CHECK(p.tensor == "gub");
  CHECK(p.shape == std::vector<std::int64_t>{3, 8});
  CHECK((p.offset == 16 + 1 && p.row_stride == 2));
  p = by_turns.place("", 2, "down_bias", sizes);
  CHECK(p.shape == std::vector<std::int64_t>{3, 5});
  CHECK((p.offset == 10 && p.row_stride == 1));
}

TEST_CASE("expert_layout: the matrices of all experts cover every element of their tensors once", "[checkpoint]") {
  const bool transposed = GENERATE(false, true);
  const auto order = GENERATE(arrangement::apart, arrangement::concatenated, arrangement::interleaved);
  const bool stacked = GENERATE(false, true);
  const bool apart = order == arrangement::apart;
  expert_layout layout{"", stacked ? "g" : "g{}", stacked ? "u" : "u{}", stacked ? "d" : "d{}", order, transposed};
  if (!apart) {  // gate and up have a bias together or none
    layout.up_bias = stacked ? "gb" : "gb{}";
    layout.down_bias = stacked ? "db" : "db{}";
  }
  std::map<std::string, std::vector<int>> seen;
  for (index_t e = 0; e < sizes.experts; ++e)
    for (const std::string_view part : layout.parts()) {
      const tensor_place p = layout.place("", e, part, sizes);
      const auto [rows, cols] = expert_layout::extent_of(part, sizes);
      index_t size = 1;
      for (const auto axis : p.shape) size *= axis;
      auto& count = seen[p.tensor];
      count.resize(static_cast<std::size_t>(size));
      for (index_t r = 0; r < rows; ++r)
        for (index_t c = 0; c < cols; ++c)
          ++count.at(static_cast<std::size_t>(p.offset + r * p.row_stride + c * p.col_stride));
    }
  for (const auto& [name, count] : seen) {
    CAPTURE(name);
    CHECK(std::all_of(count.begin(), count.end(), [](int n) { return n == 1; }));
  }
}

TEST_CASE("expert_layout: runs are the elements of a range, each once", "[checkpoint]") {
  const tensor_place p =
      GENERATE(tensor_place{"", {}, 7, 5, 1}, tensor_place{"", {}, 3, 1, 9}, tensor_place{"", {}, 1, 2, 12},
               tensor_place{"", {}, 0, 10, 2}, tensor_place{"", {}, 2, 1, 1});
  const index_t rows = 4;
  const index_t cols = p.row_stride == 1 && p.col_stride == 1 ? 1 : 5;
  for (index_t first = 0; first < 60; ++first)
    for (index_t last = first; last < 70; last += 3) {
      std::map<index_t, std::pair<index_t, index_t>> found;
      bool twice = false;
      p.for_each_run(rows, cols, first, last, [&](const tensor_place::run& run) {
        for (index_t i = 0; i < run.count; ++i)
          twice |= !found
                        .try_emplace(run.at + i * run.step,
                                     std::pair(run.row + (run.along_row ? 0 : i), run.col + (run.along_row ? i : 0)))
                        .second;
      });
      std::map<index_t, std::pair<index_t, index_t>> expected;
      for (index_t r = 0; r < rows; ++r)
        for (index_t c = 0; c < cols; ++c)
          if (const index_t at = p.offset + r * p.row_stride + c * p.col_stride; at >= first && at < last)
            expected[at - first] = {r, c};
      if (twice || found != expected) FAIL("range [" << first << ", " << last << ")");
    }
}
