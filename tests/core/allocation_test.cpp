#include "../allocation.hpp"

#include <sluice/core/parameter.hpp>
#include <sluice/core/soft_plan.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/statistics.hpp>

#include "../support.hpp"

using namespace sluice;
using test::allocations;
using test::failing_allocation;

namespace {

/// Runs f with the first, the second, ... allocation failing, until it gets through; after(ran_out) looks at what is
/// left. Returns the number of failures.
template <typename F, typename After>
long fail_each(F&& f, After&& after) {
  for (long n = 0;; ++n) {
    bool ran_out = false;
    {
      const failing_allocation failing(n);
      try {
        f();
      } catch (const std::bad_alloc&) {
        ran_out = true;
      }
    }
    after(ran_out);
    if (!ran_out) return n;
  }
}

sparse_plan<float> small_plan() {
  sparse_plan<float> p;
  p.reset(2, 3);
  p.add(0, 2, 0.5f);
  p.add(1, 0, 0.25f);
  p.add_dropped({1, 1, 1, 0, 0.75f});
  p.finish();
  return p;
}

}  // namespace

TEST_CASE("allocation: the counter counts, and the failing allocation fails", "[core][alloc]") {
  const long calls = allocations.calls;
  const long live = allocations.live;
  {
    const buffer<int> b(100);
    CHECK(allocations.calls == calls + 1);
    CHECK(allocations.live == live + 1);
  }
  CHECK(allocations.live == live);
  const failing_allocation failing(1);
  const buffer<int> first(100);
  CHECK_THROWS_AS(buffer<int>(100), std::bad_alloc);
  CHECK(failing.happened());
}

TEST_CASE("buffer: when memory runs out nothing has changed and nothing leaks", "[core][buffer][alloc]") {
  const long live = allocations.live;
  {
    const buffer<int> wanted(1000, 7);
    buffer<int> b(3, 5);
    const auto is_old = [&] { return b == buffer<int>(3, 5); };
    CHECK(fail_each([&] { b.resize(1000); }, [&](bool ran_out) { CHECK((ran_out ? is_old() : b.size() == 1000)); }) ==
          1);
    b = buffer<int>(3, 5);
    CHECK(fail_each([&] { b.assign(1000, 7); }, [&](bool ran_out) { CHECK((ran_out ? is_old() : b == wanted)); }) == 1);
    b = buffer<int>(3, 5);
    CHECK(fail_each([&] { b = wanted; }, [&](bool ran_out) { CHECK((ran_out ? is_old() : b == wanted)); }) == 1);
    b = buffer<int>(3, 5);
    CHECK(fail_each([&] { b.push_back(9); }, [&](bool ran_out) { CHECK((ran_out ? is_old() : b.size() == 4)); }) == 1);
    CHECK(fail_each([&] { const buffer<int> copy(wanted); }, [](bool) {}) == 1);
  }
  CHECK(allocations.live == live);
}

TEST_CASE("matrix_buffer: when memory runs out its shape and numbers stay", "[core][buffer][alloc]") {
  matrix_buffer<double> m;
  m.set_zero(2, 3);
  const matrix_buffer<double> large(50, 60);
  const auto is_old = [&] { return m.rows() == 2 && m.cols() == 3 && m.map().isZero(0); };
  fail_each([&] { m.resize(40, 50); }, [&](bool ran_out) { CHECK((ran_out ? is_old() : m.rows() == 40)); });
  m = {};
  m.set_zero(2, 3);
  fail_each([&] { m = large; }, [&](bool ran_out) { CHECK((ran_out ? is_old() : m.cols() == 60)); });
}

TEST_CASE("parameter: when memory runs out a gradient is there or not", "[core][parameter][alloc]") {
  const long live = allocations.live;
  {
    parameter<float> p({10, 10}, parameter_role::weight, initial_values::constant(2));
    CHECK(fail_each([&] { p.ensure_gradient(); },
                    [&](bool ran_out) {
                      CHECK(p.has_gradient() == !ran_out);
                      CHECK(p.data()[99] == 2);
                    }) == 1);
    CHECK(fail_each([&] { const parameter<float> copy(p); }, [](bool) {}) == 2);
  }
  CHECK(allocations.live == live);
}

TEST_CASE("plans: every allocation of a copy or a rebuild may fail, the plan can be made again",
          "[core][plan][alloc]") {
  const long live = allocations.live;
  {
    const sparse_plan<float> original = small_plan();
    const long failures = fail_each([&] { const sparse_plan<float> copy(original); }, [](bool) {});
    CHECK(failures >= 9);  // an array each for offsets, tokens, experts, ...
    sparse_plan<float> p;
    const auto rebuild = [&] {
      p.reset(40, 5);
      for (index_t t = 0; t < 40; ++t) p.add(t, t % 5, 1);
      p.mark_invalid(3);
      p.finish();
    };
    fail_each(rebuild, [&](bool ran_out) {
      if (ran_out) p = {};
    });
    CHECK(p.size() == 40);
    sparse_plan<float> survivor;
    const auto try_again = [&] {
      survivor.reset(40, 5);
      for (index_t t = 0; t < 40; ++t) survivor.add(t, t % 5, 1);
      survivor.finish();
    };
    fail_each(try_again, [](bool) {});  // goes on with what a failed call has left behind
    CHECK(survivor.dense_weights() == p.dense_weights());

    soft_plan<float> soft;
    fail_each([&] { soft.reset(30, 4, 2, {}); }, [](bool) {});
    CHECK(soft.rows() == 8);
    CHECK(soft.dispatch().rows() == 30);
  }
  CHECK(allocations.live == live);
}

TEST_CASE("plans and statistics: once warm, a smaller or equal batch allocates nothing", "[core][plan][alloc]") {
  sparse_plan<float> p;
  soft_plan<float> soft;
  routing_statistics statistics;
  const auto fill = [&](index_t tokens) {
    p.reset(tokens, 7);
    for (index_t t = 0; t < tokens; ++t) {
      p.add(t, t % 7, 0.5f);
      p.add(t, (t + 1) % 7, 0.5f, 1);
      p.add_dropped({t, 3, 2, 9, 0.5f});
    }
    p.mark_invalid(tokens / 2);
    p.finish();
    soft.reset(tokens, 7, 2, {});
    statistics.count(p, 0);
  };
  fill(50);
  const long calls = allocations.calls;
  const long mallocs = allocations.mallocs;
  for (const index_t tokens : {50, 3, 49, 1, 50}) fill(tokens);
  CHECK(allocations.calls == calls);
  CHECK(allocations.mallocs == mallocs);
}

TEST_CASE("sparse_plan: its memory is that of its assignments, not of its experts", "[core][plan][alloc]") {
  const auto bytes_of = [](index_t experts) {
    const long before = allocations.bytes;
    sparse_plan<float> p;
    p.reset(3, experts, 24);
    for (index_t i = 0; i < 24; ++i) p.add(i / 8, (i * 37) % experts, 1, i % 8);
    p.finish();
    return allocations.bytes - before;
  };
  CHECK(bytes_of(index_t(1) << 40) == bytes_of(1000));
  CHECK(bytes_of(1000) < 24 * 200);
}

TEST_CASE("sparse_plan: after its largest batch a plan allocates nothing, however few or many experts it needs",
          "[core][plan][alloc]") {
  for (const index_t experts : {1, 8, 100, 1000, 5000, 1000000}) {
    CAPTURE(experts);
    sparse_plan<float> p;
    const auto build = [&](index_t size, index_t stride) {
      p.reset(400, experts);
      for (index_t i = 0; i < size; ++i) p.add(i, i * stride % experts, 1);
      p.finish();
    };
    build(400, 0);
    const long calls = allocations.calls;
    for (const index_t size : {400, 1, 0, 62, 63, 64, 311, 312, 313, 399})
      for (const index_t stride : {1, 0, 641}) build(size, stride);
    CHECK(allocations.calls == calls);
  }
}
