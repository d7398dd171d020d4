#include "../allocation.hpp"

#include <sluice/codebook/assign/transport.hpp>
#include <sluice/codebook/codes/counted.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/gradient/index_propagation.hpp>
#include <sluice/codebook/gumbel_quantizer.hpp>
#include <sluice/codebook/kmeans.hpp>
#include <sluice/codebook/loss/code_contrast.hpp>
#include <sluice/codebook/loss/code_entropy.hpp>
#include <sluice/codebook/loss/distance_cross_entropy.hpp>
#include <sluice/codebook/loss/wasserstein.hpp>
#include <sluice/codebook/mixture_quantizer.hpp>
#include <sluice/codebook/repair/anchors.hpp>
#include <sluice/codebook/repair/expire_codes.hpp>
#include <sluice/codebook/repair/split_most_used.hpp>
#include <sluice/codebook/scalar/binary_spherical.hpp>
#include <sluice/codebook/scalar/lookup_free.hpp>
#include <sluice/codebook/scalar/residual_finite_scalar.hpp>
#include <sluice/codebook/structure/product.hpp>
#include <sluice/codebook/structure/projected.hpp>
#include <sluice/codebook/structure/unit_rows.hpp>
#include <sluice/codebook/vector_quantizer.hpp>
#include <sluice/exec/thread_pool.hpp>
#include <sluice/layer/reserve.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;
using test::allocations;

namespace {

constexpr index_t most_rows = 60, row_width = 8;

/// Rows of any number up to the most, some of them NaN.
matrix<float> some_rows(std::uint64_t n) {
  const index_t rows = n % 3 == 0 ? most_rows : static_cast<index_t>(n * 17 % most_rows);
  matrix<float> x = test::random_matrix<float>(rows, row_width, n);
  if (n % 4 == 1 && rows > 0) x(rows / 2, 3) = quiet_nan<float>();
  return x;
}

/// How many of 20 batches allocate.
template <typename Run>
int batches_with_allocations(Run&& run) {
  int found = 0;
  for (std::uint64_t n = 0; n < 20; ++n) {
    const matrix<float> x = some_rows(n);
    matrix<float> y(x.rows(), row_width), dx(x.rows(), row_width);
    const long calls = allocations.calls, mallocs = allocations.mallocs;
    run(x, y, dx, n);
    found += allocations.calls != calls || allocations.mallocs != mallocs;
  }
  return found;
}

template <Quantizer Q>
void check_warm_calls(const char* name, Q quantizer) {
  CAPTURE(name);
  initialize(quantizer, 1);
  typename Q::workspace ws;
  reserve(quantizer, ws, most_rows);
  matrix_buffer<index_t> ids(most_rows, quantizer.code_columns());
  CHECK(batches_with_allocations([&](const matrix<float>& x, matrix<float>& y, matrix<float>&, std::uint64_t) {
          quantizer.forward(x, y, ws);
          ids.resize(x.rows(), quantizer.code_columns());
          quantizer.encode(x, ids.map(), ws);
          quantizer.decode(ids.map(), y, ws);
        }) == 0);
  typename Q::tape tape;
  reserve(quantizer, tape, most_rows);
  CHECK(batches_with_allocations([&](const matrix<float>& x, matrix<float>& y, matrix<float>& dx, std::uint64_t n) {
          quantizer.forward(x, y, tape, {.training = true, .random = random_source(2, n)});
          quantizer.backward(y, dx, tape);
          quantizer.after_step(tape);
        }) == 0);
}

}  // namespace

TEST_CASE("quantisers: once warm, no call allocates", "[codebook][alloc]") {
  using fsq = finite_scalar_quantizer<float>;
  check_warm_calls("finite_scalar", fsq{std::vector<index_t>(row_width, 5)});
  check_warm_calls("lookup_free", lookup_free_quantizer<float>{4, {.codebooks = 2}});
  check_warm_calls("binary_spherical", unit_rows{binary_spherical_quantizer<float>{row_width, {.group = 4}}});
  check_warm_calls("projected", projected_quantizer{row_width, fsq{{8, 5, 5}}});
  check_warm_calls("residual_finite_scalar", projected_quantizer{row_width, residual_finite_scalar<float>({5, 3}, 3)});
  check_warm_calls("vector_quantizer", vector_quantizer{learned_codes<float>{20, row_width}});
  check_warm_calls("moving averages", vector_quantizer{moving_average_codes<float>{20, row_width}});
  check_warm_calls("product",
                   product_quantizer{std::vector(2, vector_quantizer{learned_codes<float>{20, row_width / 2}})});
  using learned = learned_codes<float>;
  const learned codes{20, row_width};
  check_warm_calls("expire_codes", vector_quantizer{moving_average_codes<float>{20, row_width}, expire_codes{}});
  check_warm_calls("split_most_used", vector_quantizer{counted_codes{codes}, split_most_used{.unused_below = 0.5}});
  check_warm_calls("anchors", vector_quantizer{codes, cosine_similarity{}, anchors<float>{20, row_width},
                                               commitment_loss{}, code_contrast_loss{}});
  check_warm_calls("index_propagation",
                   vector_quantizer{codes, inner_product{}, index_propagation{}, commitment_loss{}, code_entropy_loss{}});
  check_warm_calls("transport", vector_quantizer{codes, transport_assignment{}, distance_cross_entropy{}});
  check_warm_calls("wasserstein", vector_quantizer{codes, wasserstein_loss<float>{20}});
  check_warm_calls("gumbel", gumbel_quantizer<float>{row_width, row_width, {.entries = 20, .diversity_weight = 1}});
  check_warm_calls("mixture", mixture_quantizer<float>{2, 20, row_width / 2});
  check_warm_calls("residual", residual_quantizer{vector_quantizer{learned_codes<float>{20, row_width}}, 3});
}

TEST_CASE("nearest_codes, kmeans: after the largest batch no call allocates, however it is cut", "[codebook][alloc]") {
  thread_pool pool(3);
  const bool threads = GENERATE(false, true);
  const index_t codes = GENERATE(40, 1100), most = 1500;
  const executor_ref executor = threads ? executor_ref(pool) : executor_ref();
  const matrix<float> x = test::random_matrix<float>(most, 4, 1), keys = test::random_matrix<float>(codes, 4, 2);
  code_search<float> search;
  search.set_keys({keys.data(), codes, 4});
  nearest_scratch<float> scratch;
  matrix<index_t> ids(most, 1);
  kmeans<float> farthest(codes, 4, {.rounds = 2});
  kmeans<float, split_codes<float>> split(codes, 4, {.rounds = 2});
  const auto run = [&](index_t tokens) {
    nearest_codes<float>(x.topRows(tokens), search, ids.topRows(tokens), nullptr, scratch, executor);
    const auto cluster = [&](auto& clusters) {
      clusters.begin_at(keys);
      clusters.fit(x.topRows(tokens), executor);
      clusters.learn(x.topRows(tokens), executor);
      clusters.label(x.topRows(tokens), executor);
    };
    cluster(farthest);
    cluster(split);
  };
  run(most);
  for (const index_t tokens : {1, 13, 15, 100, 511, 513, 1024, 1499}) {
    const long calls = allocations.calls, mallocs = allocations.mallocs;
    run(tokens);
    const bool allocated = allocations.calls != calls || allocations.mallocs != mallocs;
    CAPTURE(tokens);
    CHECK_FALSE(allocated);
  }
}
