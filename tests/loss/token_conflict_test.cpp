#include <sluice/loss/token_conflict.hpp>

#include "loss_case.hpp"

using namespace sluice;

namespace {

/// Three tokens at expert 0, two at expert 1, weights 1/2.
test::loss_case<double> conflict_case() {
  test::loss_case<double> c;
  c.set_clean(test::random_matrix<double>(4, 3, 7));
  c.plan.reset(4, 3);
  for (const index_t t : {0, 1, 2}) c.plan.add(t, 0, 0.5, 0);
  for (const index_t t : {2, 3}) c.plan.add(t, 1, 0.5, t == 2);
  c.plan.finish();
  return c;
}

}  // namespace

TEST_CASE("token_conflict: opposite gradients in one expert conflict, equal ones do not", "[loss]") {
  auto c = conflict_case();
  matrix<double> dy(4, 2);
  dy << 1, 0, 1, .5, -.5, 0, -.5, 0;  // token 2 pulls expert 0 back; at expert 1 it has company
  conflict_memory<double> memory;
  const token_conflict loss{.coefficient = 1};
  c.gradients.zero_like(c.seen);
  const double value = loss(c.seen, c.plan, dy, c.context(), c.gradients, memory);
  std::vector<int> found(memory.conflicts.begin(), memory.conflicts.end());
  CHECK(found == std::vector<int>{0, 0, 1, 0, 0});
  std::vector<double> p(3);
  kernel::softmax(c.seen.clean.row(2), p.data(), 3);
  CHECK(value == Approx(p[0]).epsilon(1e-14));

  dy.row(2) = dy.row(1);
  CHECK(loss(c.seen, c.plan, matrix<double>::Ones(4, 2), c.context(), c.gradients, memory) == 0);
  CHECK(loss(c.seen, c.plan, matrix<double>::Zero(4, 2), c.context(), c.gradients, memory) == 0);
  // Two opposite tokens alone: one against a mean that is a hair on the other's side, both where they cancel.
  matrix<double> opposite = matrix<double>::Zero(4, 2);
  opposite(2, 0) = 1, opposite(3, 0) = -1.0001;
  c.plan.reset(4, 3);
  for (const index_t t : {2, 3}) c.plan.add(t, 1, 0.5, 0);
  c.plan.finish();
  loss.find<double>(c.plan, opposite, c.context(), memory);
  CHECK((memory.conflicts[0] == 1 && memory.conflicts[1] == 0));
  opposite(3, 0) = -1;
  loss.find<double>(c.plan, opposite, c.context(), memory);
  CHECK((memory.conflicts[0] == 1 && memory.conflicts[1] == 1));
  token_conflict{.largest_cosine = -.5}.find<double>(c.plan, opposite, c.context(), memory);
  CHECK((memory.conflicts[0] == 0 && memory.conflicts[1] == 0));
  const token_conflict unclear{.largest_cosine = quiet_nan<double>()};
  CHECK_THROWS_WITH(unclear(c.seen, c.plan, matrix<double>::Ones(3, 2), c.context(), c.gradients, memory),
                    Catch::Matchers::Contains("a cosine below nan"));
  CHECK_THROWS_WITH(loss(c.seen, c.plan, matrix<double>::Ones(3, 2), c.context(), c.gradients, memory),
                    Catch::Matchers::Contains("T = 4 and gradients of 3"));
}

TEST_CASE("token_conflict: -log(1 - p)", "[loss][gradient]") {
  // Token 2 conflicts at expert 0, p = 1/2 of logits (log 2, 0, 0): log 2, and by hand dl = (1/2, -1/4, -1/4).
  auto c = conflict_case();
  matrix<double> logits = matrix<double>::Zero(4, 3);
  logits(2, 0) = std::log(2);
  c.set_clean(logits);
  matrix<double> dy(4, 2);
  dy << 1, 0, 1, .5, -.5, 0, -.5, 0;
  conflict_memory<double> memory;
  token_conflict loss{.coefficient = 1, .form = conflict_form::log_complement};
  c.gradients.zero_like(c.seen);
  CHECK(loss(c.seen, c.plan, dy, c.context(), c.gradients, memory) == Approx(std::log(2)).epsilon(1e-14));
  for (index_t e = 0; e < 3; ++e) CHECK(c.gradients.clean(2, e) == Approx(e == 0 ? .5 : -.25).epsilon(1e-14));

  logits(2, 0) = 800;  // 1 - p is 0 in double; the value is 800 - log 2
  c.set_clean(logits);
  c.gradients.zero_like(c.seen);
  CHECK(loss(c.seen, c.plan, dy, c.context(), c.gradients, memory) == Approx(800 - std::log(2)).epsilon(1e-14));
  logits.row(2) << 0, -std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity();
  c.set_clean(logits);
  c.gradients.zero_like(c.seen);
  CHECK(loss(c.seen, c.plan, dy, c.context(), c.gradients, memory) == 0);
  CHECK(c.gradients.clean.map().isZero(0));

  auto drawn = test::random_case(12, 4, 35);
  const matrix<double> of_outputs = test::random_matrix<double>(12, 5, 36);
  const auto report = drawn.check([&](const auto& seen, const auto& plan, const auto& context, auto& gradients) {
    return token_conflict{.coefficient = .8, .largest_cosine = .6, .form = conflict_form::log_complement}(
        seen, plan, tokens_in<double>(of_outputs), context, gradients, memory);
  });
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("token_conflict: the gradient is that of mean p over the conflicts", "[loss][gradient]") {
  auto c = test::random_case(12, 4, 31);
  const matrix<double> dy = test::random_matrix<double>(12, 5, 33);
  conflict_memory<double> memory;
  const auto report = c.check([&](const auto& seen, const auto& plan, const auto& context, auto& gradients) {
    return token_conflict{.coefficient = .8, .largest_cosine = .6}(seen, plan, tokens_in<double>(dy), context,
                                                                   gradients, memory);
  });
  index_t conflicts = 0;
  for (const auto one : memory.conflicts) conflicts += one;
  CHECK(conflicts > 2);
  INFO(report.describe());
  CHECK(report.checked == 96);
  CHECK(report.largest_error < 1e-6);
}
