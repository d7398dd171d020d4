// UltraMem's memory layer: Tucker product keys choose values of a table, in two releases of its configuration.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/value_table.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/router/tokens_choose/tucker_key.hpp>

namespace oracle {
namespace {

using namespace sluice;

std::vector<index_t> copy_pairs(const matrix_buffer<index_t>& pairs) {
  return {pairs.data(), pairs.data() + pairs.size()};
}

/// What the two releases call the same things.
struct spelling {
  const char *k, *key_width, *keys, *rank, *value_width;
  const char *u, *v, *shuffle, *scores, *penalty;
};
constexpr spelling first_release{"k",      "kdim",   "key_num", "tucker_rank", "vdim",
                                 "core_u", "core_v", "shuffle", "scores",      "core_loss"};
constexpr spelling second_release{"knn",      "key_dim",  "num_keys",      "rank",    "value_dim",
                                  "tucker_u", "tucker_v", "shuffle_index", "weights", "rank_loss"};

template <typename Scalar, typename Norm>
void run_memory(oracle_case<Scalar>& c, const spelling& names, Norm norm) {
  const auto count = [&](const char* name) { return c.template setting<index_t>(name); };
  const index_t heads = count("heads"), k = count(names.k), n = count(names.keys), r = count(names.rank), M = count("cores");
  const index_t expand = count("value_expand"), width = count(names.value_width);
  tucker_key_router<Scalar, Norm> router(
      count("D"), n, {.heads = heads, .top_k = k, .key_width = count(names.key_width), .rank = r, .cores = M}, norm, norm);
  auto& keys = router.keys();
  bindings<Scalar> bound, cores;
  bound.bind("query_proj.weight", router.query_weight());
  // Files have a key as (d, r).
  parameter<Scalar> columns({heads, 2, n, keys.width() * r}, parameter_role::weight);
  const auto each_key_number = [&](auto&& f) {
    for (index_t i = 0; i < columns.size(); ++i)
      f(i, (i / (keys.width() * r) * r + i % r) * keys.width() + i / r % keys.width());
  };
  bound.bind("keys", columns);
  bound.bind("query_norm.weight", keys.query_norm().gain());
  bound.bind("keys_norm.weight", keys.key_norm().gain());
  // One tensor of all cores, or a tensor each.
  std::vector<parameter<Scalar>> parts(as_size(M));
  if (c.has("tucker_core"))
    bound.bind("tucker_core", keys.core());
  else
    for (index_t m = 0; m < M; ++m) {
      parts[as_size(m)] = {{heads, r, r}, parameter_role::weight};
      cores.bind("core." + std::to_string(m), parts[as_size(m)]);
    }
  bound.load(c);
  cores.load(c);
  each_key_number([&](index_t file, index_t own) { keys.array().data()[own] = columns.data()[file]; });
  const index_t each = heads * r * r;
  for (index_t m = 0; m < M && !c.has("tucker_core"); ++m)
    std::copy_n(parts[as_size(m)].data(), each, keys.core().data() + m * each);
  const auto give_gradients = [&] {
    each_key_number([&](index_t file, index_t own) {
      columns.gradient()[as_size(file)] = keys.array().gradient()[as_size(own)];
    });
    for (index_t m = 0; m < M && !c.has("tucker_core"); ++m)
      std::copy_n(keys.core().gradient().data() + m * each, each, parts[as_size(m)].gradient().data());
  };
  const auto u = c.numbers(names.u), v = c.numbers(names.v);
  // The leading vectors that we would find, but for the rounding of those given.
  keys.update_vectors();
  for (std::size_t i = 0; i < u.size(); ++i) {
    const double off = std::max(std::abs(double(keys.row_vectors().value()[i]) - double(u[i])),
                                std::abs(double(keys.column_vectors().value()[i]) - double(v[i])));
    if (!(off < 1e-5)) c.fail("the leading singular vectors differ by " + std::to_string(off));
    keys.row_vectors().value()[i] = u[i];
    keys.column_vectors().value()[i] = v[i];
  }

  const matrix<Scalar> x = c.rows("x"), dy = c.rows("grad_out");
  const routing_context<Scalar> context;
  typename decltype(router)::plan plan;
  typename decltype(router)::tape tape;
  router.route(x, context, plan, tape);
  const auto pairs = copy_pairs(tape.seen.pair);
  const auto shuffle = c.integers(names.shuffle);
  std::vector<index_t> shuffled;
  for (const index_t pair : pairs) shuffled.push_back(shuffle.at(as_size(pair)));
  c.check_integers("indices", pairs);
  c.check_integers("indices_shuffled", shuffled);
  c.check(names.scores, copy(tape.seen.scores));

  const index_t physical = c.rows("values").rows();
  value_table<Scalar> table(x.cols(), physical, width, {.blocks = expand, .pieces = M});
  table.values().assign(c.rows("values"));
  table.set_shuffle(shuffle);
  ensure_gradients(table);
  typename value_table<Scalar>::tape own;
  const matrix<Scalar> projection = c.rows("values_proj.weight");
  matrix<Scalar> blocks = matrix<Scalar>::Zero(x.rows(), expand * width);
  table.forward_routed(x, plan.routed(), blocks, own, {});
  c.check("y", matrix<Scalar>(blocks * projection.transpose()));
  const matrix<Scalar> dblocks = dy * projection;
  c.check("grad.values_proj.weight", matrix<Scalar>(dy.transpose() * blocks));
  matrix<Scalar> dx = matrix<Scalar>::Zero(x.rows(), x.cols());
  typename decltype(plan)::gradient dplan;
  dplan.weight.resize(plan.size());
  table.backward_routed(x, plan.routed(), dblocks, dx, own, dplan.weight.data(), nullptr, {});
  c.check("grad.values", matrix<Scalar>(table.values().gradient_map()));
  ensure_gradients(router);
  zero_gradients(router);
  tape.dseen.zero_like(tape.seen);
  router.backward(x, context, plan, dplan, tape, dx);
  c.check("grad.x", dx);
  give_gradients();
  bound.check_gradients(c, "grad");
  cores.check_gradients(c, "grad");
  zero_gradients(router);
  c.check(names.penalty, static_cast<Scalar>(keys.core_penalty(1)));
  give_gradients();
  bound.check_gradients(c, std::string("grad_") + names.penalty);
  cores.check_gradients(c, std::string("grad_") + names.penalty);
}

template <typename Scalar>
void ultramem(oracle_case<Scalar>& c) {
  run_memory(c, first_release, layer_norm<Scalar>(c.template setting<index_t>("kdim"), {.epsilon = Scalar(1e-5)}));
}

template <typename Scalar>
void ultramem_tdqkr(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("norm") != "rms") throw unsupported("norm");
  run_memory(c, second_release,
             rms_norm<Scalar>(c.template setting<index_t>("key_dim"), {.epsilon = c.template setting<Scalar>("norm_eps")}));
}

}  // namespace

std::vector<replayer> memory_layers() {
  return {{"ultramem", ultramem<float>, ultramem<double>},
          {"ultramem_tdqkr", ultramem_tdqkr<float>, ultramem_tdqkr<double>}};
}

}  // namespace oracle
