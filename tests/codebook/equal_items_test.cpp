#include <sluice/codebook/equal_items.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("number_equal_items: equal rows are told apart in their order, hidden ones stay hidden", "[codebook]") {
  matrix<index_t> ids(7, 2), numbers(7, 1);
  ids << 3, 1, 0, 5, 3, 1, no_code, no_code, 3, 2, 3, 1, no_code, no_code;
  CHECK(number_equal_items(ids, numbers) == 3);
  CHECK(numbers == (matrix<index_t>(7, 1) << 0, 0, 1, no_code, 0, 2, no_code).finished());
  matrix<index_t> first(3, 1);
  number_equal_items(ids.topRows(3), first);
  CHECK(first == numbers.topRows(3));
  CHECK(number_equal_items(ids.middleRows(1, 2), first.topRows(2)) == 1);
  CHECK(number_equal_items(ids.topRows(0), first.topRows(0)) == 0);
  CHECK_THROWS_AS(number_equal_items(ids, first), std::invalid_argument);
}
