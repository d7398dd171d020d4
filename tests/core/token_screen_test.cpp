#include <sluice/core/token_screen.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

bool shares_memory(const token_screen<double>& screen, const matrix<double>& x) {
  return screen.of(x).data() == x.data();
}

}  // namespace

TEST_CASE("token_screen: without padding and NaN everybody reads x itself", "[core][token_screen]") {
  token_screen<double> screen;
  const matrix<double> x = test::random_matrix<double>(5, 3, 1);
  index_t calls = 0;
  screen.score(x, routing_context<double>{}, [&](tokens_in<double> seen) { calls += seen.data() == x.data(); },
               [](index_t) { return false; });
  CHECK(calls == 1);
  CHECK(shares_memory(screen, x));
  for (index_t t = 0; t < 5; ++t) CHECK((screen.is_routed(t) && !screen.is_invalid(t)));
  screen.hide(matrix<double>(0, 3), {});
  CHECK(shares_memory(screen, x));
}

TEST_CASE("token_screen: padding and NaN are zeros to those who read, whatever padding holds", "[core][token_screen]") {
  matrix<double> x = test::random_matrix<double>(70, 3, 1);
  x(1, 2) = x(4, 0) = x(66, 1) = quiet_nan<double>();
  std::vector<std::uint8_t> mask(70, 1);
  mask[4] = mask[69] = 0;
  routing_context<double> context;
  context.token_mask = mask;
  for (const int threads : {1, 3}) {
    test::shuffled_threads pool(threads);
    context.executor = pool;
    token_screen<double> screen;
    screen.hide(x, context);
    const matrix<double> seen = screen.of(x);
    matrix_buffer<double> results(70, 2), gradients(70, 2);
    for (auto* m : {&results, &gradients}) std::fill_n(m->data(), m->size(), 1.0);
    screen.spoil_invalid(results);
    screen.clear_hidden(gradients);
    for (index_t t = 0; t < 70; ++t) {
      const bool invalid = t == 1 || t == 66, padding = t == 4 || t == 69;
      CHECK(screen.is_invalid(t) == invalid);
      CHECK(screen.is_routed(t) == !(invalid || padding));
      CHECK(test::same_bits(matrix<double>(seen.row(t)),
                            invalid || padding ? matrix<double>::Zero(1, 3) : matrix<double>(x.row(t))));
      CHECK(is_nan(results(t, 1)) == invalid);
      CHECK(gradients(t, 1) == (invalid || padding ? 0 : 1));
    }
  }
}

TEST_CASE("token_screen: NaN that scoring makes of numbers hides its token, and scoring runs again",
          "[core][token_screen]") {
  matrix<double> x = matrix<double>::Ones(4, 2);
  x(0, 1) = quiet_nan<double>();
  x.row(2).setConstant(1e300);
  matrix<double> sums(4, 1);
  token_screen<double> screen;
  index_t calls = 0;
  const auto score = [&](tokens_in<double> seen) {
    ++calls;
    for (index_t t = 0; t < 4; ++t) sums(t, 0) = seen(t, 0) > 1e200 ? quiet_nan<double>() : seen(t, 1);
  };
  screen.score(x, {}, score, [&](index_t t) { return is_nan(sums(t, 0)); });
  CHECK(calls == 2);
  CHECK(screen.is_invalid(0));
  CHECK(screen.is_invalid(2));
  CHECK(screen.is_routed(1));
  CHECK(sums == (matrix<double>(4, 1) << 0, 1, 0, 1).finished());
  CHECK(screen.of(x).row(2).isZero(0));

  // Where results show NaN nobody looks at x, and the outcome is the same. Here the second column shows it.
  token_screen<double> quick;
  calls = 0;
  quick.score(x, {}, score, [&](index_t t) { return is_nan(sums(t, 0)); }, true);
  CHECK(calls == 2);
  for (index_t t = 0; t < 4; ++t) CHECK(quick.is_invalid(t) == screen.is_invalid(t));
  CHECK(test::same_bits(matrix<double>(quick.of(x)), matrix<double>(screen.of(x))));

  // NaN that does not come from tokens stays: every token is invalid, and there is an end to it.
  screen.score(x, {}, [&](tokens_in<double>) { ++calls; }, [](index_t) { return true; });
  CHECK(calls == 4);
  for (index_t t = 0; t < 4; ++t) CHECK(screen.is_invalid(t));
}
