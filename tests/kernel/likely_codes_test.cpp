#include <sluice/kernel/best_code.hpp>
#include <sluice/kernel/likely_codes.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// 200 codes of width 37 for three rows, of which the first is also searched on its own.
template <typename Scalar>
struct lone_row {
  matrix<Scalar> x = test::random_matrix<Scalar>(3, 37, 1), keys = test::random_matrix<Scalar>(200, 37, 2);
  std::vector<Scalar> offsets = std::vector<Scalar>(200, Scalar(-1));

  kernel::code_keys<Scalar> view() const { return {keys.data(), 37, offsets.data(), 200, 37}; }
  std::pair<index_t, Scalar> search(index_t rows) const {
    std::vector<Scalar> memory(as_size(kernel::code_blocking<Scalar>{rows, 200, 37}.size()), quiet_nan<Scalar>());
    index_t ids[3];
    Scalar scores[3];
    kernel::best_code(x.data(), 37, rows, view(), ids, 1, scores, memory.data());
    return {ids[0], scores[0]};
  }
  bool agrees() const {
    const auto alone = search(1), among = search(3);
    return alone.first == among.first && std::memcmp(&alone.second, &among.second, sizeof(Scalar)) == 0;
  }
  index_t likely() const {
    kernel::likely_codes<Scalar> found;
    return kernel::find_likely_codes(x.data(), view(), found) ? found.size() : -1;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("likely_codes: a row on its own finds what it finds among others", "[kernel][best_code]", float,
                   double) {
  using S = TestType;
  lone_row<S> plain;
  CHECK(plain.likely() >= 1);
  CHECK(plain.likely() <= 3);
  CHECK(plain.agrees());
  const index_t best = plain.search(3).first;

  for (const index_t copies : {5, 60}) {  // few enough, and too many
    auto equal = plain;
    for (index_t c = 0; c < copies; ++c) equal.keys.row(199 - c) = plain.keys.row(best);
    CHECK((equal.likely() >= 0) == (copies == 5));
    CHECK(equal.agrees());
  }
  auto near = plain;  // what rounding alone decides
  for (index_t c = 0; c < 20; ++c) {
    near.keys.row(c) = plain.keys.row(best);
    near.keys(c, c) *= 1 + S(c % 3 - 1) * std::numeric_limits<S>::epsilon();
  }
  CHECK(near.likely() >= 20);
  CHECK(near.agrees());

  const S high = kernel::number_of_key<S>(kernel::infinity_key<S>);
  std::vector<lone_row<S>> odd(8, plain);
  odd[0].keys(best, 5) = quiet_nan<S>();
  odd[1].keys(7, 36) = high;
  odd[1].keys(8, 36) = quiet_nan<S>();  // behind which the infinity may hide
  odd[2].x(0, 3) = -high;
  odd[3].x(0, 3) = quiet_nan<S>();
  odd[4].offsets[9] = high;
  odd[5].offsets.assign(200, -high);
  odd[6].keys *= (std::numeric_limits<S>::max)() / 64;
  for (const auto& one : odd)
    if (&one != &odd.back()) {
      CHECK(one.likely() == -1);
      CHECK(one.agrees());
    }
  odd[7].x *= 64 * (std::numeric_limits<S>::min)();  // products are denormal or nothing
  odd[7].offsets.assign(200, S(0));
  CHECK(odd[7].agrees());
}
