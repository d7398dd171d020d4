#include <sluice/layer/joined_rows.hpp>

#include "../support.hpp"

#include <vector>

using namespace sluice;

namespace {

/// A plan as joined_rows sees it: rows by expert, and their tokens if they may be shared.
struct few_rows {
  std::vector<index_t> offsets, tokens;
  bool are_shared = true;

  joined_rows::part part() const { return {expert_rows(offsets), are_shared ? tokens.data() : nullptr}; }
};

matrix_buffer<double> numbered_rows(index_t rows, double first) {
  matrix_buffer<double> m(rows, 2);
  for (index_t i = 0; i < m.size(); ++i) m.data()[i] = first + double(i);
  return m;
}

}  // namespace

TEST_CASE("joined_rows: rows of one expert and token are one, others stay apart", "[layer][joined_rows]") {
  // Experts 0, 1, 2; tokens 0 .. 3. The last plan's rows are its own whatever their tokens are.
  const std::vector<few_rows> plans{{{0, 2, 2, 4}, {1, 3, 0, 2}},
                                    {{0, 2, 3, 5}, {0, 3, 3, 2, 1}},
                                    {{0, 0, 0, 0}, {}},
                                    {{0, 1, 1, 2}, {1, 0}, false}};
  joined_rows joined;
  joined.join(4, 4, 3, [&](index_t q) { return plans[as_size(q)].part(); });
  const auto places = [&](index_t q) { return std::vector<index_t>(joined.of(q).begin(), joined.of(q).end()); };
  CHECK(joined.rows() == 9);
  CHECK(places(0) == std::vector<index_t>{0, 1, 5, 6});
  CHECK(places(1) == std::vector<index_t>{2, 1, 4, 6, 7});
  CHECK(places(2).empty());
  CHECK(places(3) == std::vector<index_t>{3, 8});
  const index_t loads[] = {4, 1, 4};
  for (index_t e = 0; e < 3; ++e) CHECK(joined.by_expert().load(e) == loads[e]);
  CHECK((joined.owns_rows(0) && joined.owns_rows(1) && !joined.owns_rows(2) && joined.owns_rows(3)));

  // The first plan that has a row writes it; everybody reads it; what comes back is added up, and goes to the owner.
  matrix_buffer<double> all(9, 2), own(5, 2);
  all.set_zero(9, 2);
  joined.spread(1, numbered_rows(5, 10), all, {});
  joined.spread(0, numbered_rows(4, 100), all, {});
  CHECK(all(1, 0) == 102);  // expert 0, token 3: the first plan's
  CHECK(all(2, 0) == 10);
  joined.collect(1, all, own, {});
  CHECK(own(1, 1) == 103);
  CHECK(own(2, 0) == 14);
  all.set_zero(9, 2);
  joined.add(0, numbered_rows(4, 1), all, {});
  joined.add(1, numbered_rows(5, 1), all, {});
  CHECK(all(1, 0) == 3 + 3);
  CHECK(all(6, 1) == 8 + 8);
  joined.take(1, all, own, {});
  CHECK(own(1, 0) == 0);
  CHECK(own(0, 0) == all(2, 0));

  // As if there had been no earlier batch.
  joined.join(1, 4, 3, [&](index_t) { return plans[1].part(); });
  CHECK(places(0) == std::vector<index_t>{0, 1, 2, 3, 4});
  joined.join(2, 0, 3, [&](index_t) { return plans[2].part(); });
  CHECK(joined.rows() == 0);
}
