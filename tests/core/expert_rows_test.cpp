#include <sluice/core/expert_rows.hpp>

#include "../support.hpp"

#include <array>

using namespace sluice;

namespace {

using listed = std::vector<std::array<index_t, 3>>;

listed listed_rows(const expert_rows& rows) {
  listed all;
  for (const auto& [expert, begin, end] : rows) all.push_back({expert, begin, end});
  return all;
}

}  // namespace

TEST_CASE("expert_rows: goes through the experts that have rows", "[core][expert_rows]") {
  const std::vector<index_t> offsets{3, 3, 5, 5, 9, 9}, active{1, 3}, active_offsets{3, 5, 9};
  for (const expert_rows& rows : {expert_rows(offsets), expert_rows(5, active, active_offsets)}) {
    CHECK(rows.experts() == 5);
    CHECK(rows.first_row() == 3);
    CHECK(rows.last_row() == 9);
    CHECK(rows.rows() == 6);
    CHECK(listed_rows(rows) == listed{{1, 3, 5}, {3, 5, 9}});
    for (index_t e = 0; e < 5; ++e) {
      const auto [expert, begin, end] = rows.of(e);
      CHECK(expert == e);
      CHECK(begin == offsets[std::size_t(e)]);
      CHECK(end == offsets[std::size_t(e) + 1]);
      CHECK(rows.load(e) == end - begin);
    }
  }
}

TEST_CASE("expert_rows: without experts, rows, or experts without rows", "[core][expert_rows]") {
  const expert_rows none, no_offsets = std::vector<index_t>{};
  CHECK((none.experts() == 0 && none.rows() == 0 && listed_rows(none).empty()));
  CHECK((no_offsets.experts() == 0 && no_offsets.rows() == 0));
  const std::vector<index_t> zeros{0, 0, 0}, nothing, start{0};
  CHECK(listed_rows(zeros).empty());
  const expert_rows idle(index_t(1) << 40, nothing, start);
  CHECK((idle.experts() == index_t(1) << 40 && idle.rows() == 0 && listed_rows(idle).empty()));
  CHECK(idle.load((index_t(1) << 40) - 1) == 0);
  const std::vector<index_t> all{0, 1, 2}, full{0, 4, 5, 7};
  CHECK(listed_rows({3, all, full}) == listed{{0, 0, 4}, {1, 4, 5}, {2, 5, 7}});
}

TEST_CASE("expert_rows: slices of both forms are those of the offsets", "[core][expert_rows]") {
  const std::vector<index_t> offsets{2, 2, 5, 6, 6, 6, 10, 11}, active{1, 2, 5, 6}, active_offsets{2, 5, 6, 10, 11};
  for (index_t first = 0; first <= 7; ++first)
    for (index_t count = 0; first + count <= 7; ++count) {
      CAPTURE(first, count);
      const std::vector<index_t> own(offsets.begin() + first, offsets.begin() + first + count + 1);
      for (const expert_rows& rows : {expert_rows(offsets), expert_rows(7, active, active_offsets)}) {
        const expert_rows part = rows.slice(first, count);
        CHECK(part.experts() == count);
        CHECK(part.first_row() == own.front());
        CHECK(part.last_row() == own.back());
        CHECK(listed_rows(part) == listed_rows(own));
        for (index_t e = 0; e < count; ++e) CHECK(part.load(e) == expert_rows(own).load(e));
        if (count > 1) CHECK(listed_rows(part.slice(1, count - 1)) == listed_rows(expert_rows(own).slice(1, count - 1)));

        const expert_rows alone = rows.only(first, count);
        CHECK(alone.experts() == 7);
        CHECK(alone.first_row() == own.front());
        CHECK(alone.last_row() == own.back());
        listed numbered = listed_rows(own);
        for (auto& [expert, begin, end] : numbered) expert += first;
        CHECK(listed_rows(alone) == numbered);
        for (index_t e = 0; e < 7; ++e)
          CHECK(alone.load(e) == (first <= e && e < first + count ? rows.load(e) : 0));
        if (count > 1) CHECK(listed_rows(alone.only(first + 1, count - 1)) == listed_rows(rows.only(first + 1, count - 1)));
        CHECK(listed_rows(alone.slice(first, count)) == listed_rows(own));
      }
    }
}
