// The headline: forward passes of published shapes, sluice and its twins in one race.
//
// Cases of a shape and a number of tokens:
//   uniform          routed by the layer's own top-k router (each twin routes for itself); random weights spread tokens evenly
//   uniform_planned  the plan is given: K experts drawn evenly
//   zipf_planned     the plan is given: K experts drawn by Zipf's law, so that the same number of assignments is uneven
//   <shape>_cached   one batch again and again, where its weights fit into a cache; everywhere else caches are flushed
#include <sluice/exec/thread_pool.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "model.hpp"
#include "peers/dense_ffn.hpp"
#include "peers/eigen_loop.hpp"
#include "peers/naive_loop.hpp"
#include "peers/onednn_loop.hpp"
#include "peers/weight_stream.hpp"
#include "peers/weights.hpp"
#include "session.hpp"
#include "workload.hpp"

namespace bench {

namespace {

using peers::expert_lists;
using peers::parallelism;

/// Where the time of a naive product exceeds what it teaches.
constexpr double naive_flops = 1.5e9;
/// Beyond this no shape is bound by memory.
constexpr double stream_flops = 1e10;

struct layer_case {
  std::int64_t rows;
  std::string routing;
  bool cached;
  int threads;
  bool with_peers;

  std::string name(const shape& s) const { return s.name + (cached ? "_cached" : ""); }
  /// What --filter sees.
  std::string title(const shape& s) const {
    return name(s) + " T=" + std::to_string(rows) + " " + routing + ", " + std::to_string(threads) +
           (threads == 1 ? " thread" : " threads");
  }
};

struct case_data {
  std::string name;  ///< in the CSV
  std::string routing;
  bool planned = false;
  bool cached = false;
  std::vector<token_rows> x;
  std::vector<plan> plans;  ///< of x, whether given to the implementations or not
  std::vector<expert_lists> lists;

  std::size_t batch(std::int64_t repetition) const {
    return cached ? 0 : static_cast<std::size_t>(repetition) % x.size();
  }
};

std::string name_of(parallelism mode) {
  return mode == parallelism::inside_products ? "threads inside products" : "threads over experts";
}

/// What a layer is rounded to, beside what it is in.
template <typename... Storages>
struct storage_list {};
using rounded_storages = storage_list<
    sluice::bfloat16_storage, sluice::int8_blocks, sluice::int4_blocks, sluice::coded_storage<sluice::q4_k_format>,
    sluice::coded_storage<sluice::q4_k_format, sluice::arithmetic::bytes>,
    sluice::coded_storage<sluice::q6_k_format, sluice::arithmetic::bytes>, sluice::coded_storage<sluice::mxfp4_format>,
    sluice::coded_storage<sluice::mxfp4_format, sluice::arithmetic::bytes>,
    sluice::coded_storage<sluice::ternary_format, sluice::arithmetic::bytes>>;

template <typename Layer, typename... Storages>
auto rounded_layers(const Layer& layer, const shape& on, storage_list<Storages...>) {
  return std::tuple(rounded_layer<sluice::swiglu<float, Storages>>(layer, on)...);
}

template <typename Expert>
class shape_bench {
public:
  shape_bench(session& s, const shape& on)
      : session_(s),
        shape_(on),
        layer_(make_layer<Expert>(on)),
        rounded_(rounded_layers(layer_, on, rounded_storages())),
        weights_(peers::weights_of_layer(layer_, on.top_k)) {}

  void run(const layer_case& c) {
    const int threads = c.threads;
    const case_data data = make_case(c);
    if (c.cached && level_of(data, threads) == memory_level::memory) return;

    sluice::thread_pool pool(threads);
    const sluice::executor_ref executor = threads == 1 ? sluice::executor_ref() : sluice::executor_ref(pool);
    token_rows y(c.rows, shape_.inputs);
    std::vector<contestant> contestants{layer_contestant("sluice", layer_, data, executor, y)};
    records rows_of_report{row<Expert>(data, "sluice", threads)};
    const auto add = [&](contestant other, const std::string& note = "") {
      rows_of_report.push_back(row<Expert>(data, other.name, threads));
      rows_of_report.back().note = note;
      contestants.push_back(std::move(other));
    };

    if (c.routing == "uniform" && threads > 1) {
      const auto add_rounded = [&]<typename Stored>(const layer_of<Stored>& rounded) {
        contestants.push_back(
            layer_contestant("sluice_" + std::string(storage<Stored>::name), rounded, data, executor, y));
        rows_of_report.push_back(row<Stored>(data, "sluice", threads));
      };
      std::apply([&](const auto&... rounded) { (add_rounded(rounded), ...); }, rounded_);
    }
    if (c.with_peers && !c.cached && rows_of_report.front().done.flops <= stream_flops) {
      const auto stream = std::make_shared<peers::weight_stream>(weights_, threads);
      add({"stream", scene(data), [&data, stream](std::int64_t r) { stream->run(data.lists[data.batch(r)]); }});
    }
    if (c.with_peers) {
      add_loop<peers::eigen_loop>("eigen", data, y, threads, add);
#if defined(SLUICE_BENCH_WITH_ONEDNN)
      add_loop<peers::onednn_loop>("onednn", data, y, threads, add);
#endif
      if (rows_of_report.front().done.flops <= naive_flops && !c.cached)
        add(loop_contestant("naive", data, std::make_shared<peers::naive_loop>(weights_, threads), y));
    }
    if (c.with_peers && c.routing == "uniform" && !c.cached) {
      if (!dense_) dense_ = std::make_unique<peers::dense_ffn<Expert>>(shape_);
      dense_->prepare(c.rows, executor);
      add({"dense", scene(data), [&](std::int64_t r) { dense_->run(data.x[data.batch(r)], y); }});
      record& last = rows_of_report.back();
      last.done = layer_work(shape_, c.rows * shape_.top_k, static_cast<double>(shape_.top_k), storage<Expert>::bytes);
    }
    session_.race(c.title(shape_), contestants, std::move(rows_of_report));
  }

  /// Compares what the implementations compute, before any of it is timed.
  void check() {
    const int threads = session_.asked.threads;
    const case_data data = make_case({8, "uniform", false, threads, true});
    sluice::thread_pool pool(threads);
    token_rows y(8, shape_.inputs), other(8, shape_.inputs);
    layer_contestant("sluice", layer_, data, pool, y).call(0);
    const auto compare = [&](const std::string& name, auto loop) {
      loop_contestant(name, data, std::move(loop), other).call(0);
      const float difference = (y - other).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff();
      // Sums of D and of H products, in another order: their rounding errors grow with the square root of the length.
      const float allowed = 16 * std::sqrt(static_cast<float>(std::max(shape_.inputs, shape_.hidden))) * 6e-8f +
                            (storage<Expert>::bytes < 4 ? 0.02f : 0.0f);
      if (!(difference <= allowed))
        throw std::runtime_error(name + " and sluice differ by " + std::to_string(difference) + " on " + shape_.name);
      double& worst = session_.found.checks[name];
      worst = std::max<double>(worst, difference);
    };
    compare("naive", std::make_shared<peers::naive_loop>(weights_, threads));
    compare("eigen", std::make_shared<peers::eigen_loop>(weights_, threads, parallelism::over_experts));
#if defined(SLUICE_BENCH_WITH_ONEDNN)
    compare("onednn", std::make_shared<peers::onednn_loop>(weights_, threads, parallelism::over_experts));
#endif
  }

private:
  case_data make_case(const layer_case& c) {
    case_data data{
        c.name(shape_), c.routing, c.routing != "uniform", c.cached, random_batches(c.rows, shape_.inputs, 11), {}, {}};
    sluice::thread_pool pool(c.threads);
    sluice::routing_context<float> context;
    context.executor = pool;
    router::tape tape;
    for (std::size_t b = 0; b < data.x.size(); ++b) {
      if (data.planned) {
        const double exponent = c.routing == "zipf_planned" ? 1.0 : 0.0;
        data.plans.push_back(skewed_plan(c.rows, shape_.experts, shape_.top_k, exponent, 101 + b));
      } else {
        layer_.router().route(data.x[b], context, data.plans.emplace_back(), tape);
      }
      data.lists.push_back(peers::lists_of(data.plans.back()));
    }
    return data;
  }

  memory_level level_of(const case_data& data, int threads, double weight_bytes = 4) const {
    if (!data.cached) return memory_level::memory;
    const double bytes =
        static_cast<double>(shape_.expert_size()) * summarize({data.plans.front()}).touched * weight_bytes;
    return resident_level(bytes, session_.caches, threads);
  }

  template <typename Stored>
  record row(const case_data& data, const std::string& implementation, int threads) const {
    record r;
    r.name = data.name;
    r.tokens = data.x.front().rows();
    r.routing = data.routing;
    r.dtype = implementation == "sluice" || implementation == "dense" ? storage<Stored>::name : "float32";
    r.implementation = implementation;
    r.threads = threads;
    const load_summary loads = data.cached ? summarize({data.plans.front()}) : summarize(data.plans);
    r.touched = loads.touched;
    r.largest_load = loads.largest;
    r.done = layer_work(shape_, r.tokens * shape_.top_k, loads.touched,
                        r.dtype == storage<Stored>::name ? storage<Stored>::bytes : 4);
    r.level = level_of(data, threads, storage<Stored>::bytes);
    return r;
  }

  /// What comes before a call and is not timed.
  std::function<void(std::int64_t)> scene(const case_data& data) {
    return [this, &data](std::int64_t r) {
      if (!data.cached) session_.flush(data.x[data.batch(r)]);
    };
  }

  /// A cached case is called once more before the clock runs, since other contestants had the caches in between, and OpenMP's
  /// threads spin for a while after a twin's call: until then they would take the next one's cores.
  contestant with_scene(const std::string& name, const case_data& data, std::function<void(std::int64_t)> call) {
    if (!data.cached) return {name, scene(data), call};
    const auto warm = [call](std::int64_t r) {
      std::this_thread::sleep_for(std::chrono::milliseconds(15));
      call(r), call(r);
    };
    return {name, warm, call};
  }

  template <typename Layer>
  contestant layer_contestant(const std::string& name, const Layer& layer, const case_data& data, const sluice::executor_ref& executor,
                              token_rows& y) {
    const auto workspace = std::make_shared<typename Layer::workspace>();
    const auto call = [&layer, &data, executor, &y, workspace](std::int64_t r) {
      sluice::routing_context<float> context;
      context.executor = executor;
      const std::size_t b = data.batch(r);
      if (data.planned)
        layer.forward_planned(data.x[b], y, *workspace, context);
      else
        layer.forward(data.x[b], y, *workspace, context);
    };
    contestant c = with_scene(name, data, call);
    if (data.planned && !data.cached)
      c.prepare = [&data, workspace, then = c.prepare](std::int64_t r) {
        workspace->plan = data.plans[data.batch(r)];
        then(r);
      };
    return c;
  }

  template <typename Loop>
  contestant loop_contestant(const std::string& name, const case_data& data, std::shared_ptr<Loop> loop,
                             token_rows& y) {
    return with_scene(name, data, [&data, loop, &y, lists = expert_lists()](std::int64_t r) mutable {
      const std::size_t b = data.batch(r);
      if (!data.planned) loop->route(data.x[b], lists);
      loop->run(data.x[b], data.planned ? data.lists[b] : lists, y);
    });
  }

  /// Tries both places for the threads and enters the faster one.
  template <typename Loop, typename Add>
  void add_loop(const std::string& name, const case_data& data, token_rows& y, int threads, Add&& add) {
    std::array<contestant, 2> variants;
    std::array<double, 2> seconds{};
    constexpr std::array modes{parallelism::inside_products, parallelism::over_experts};
    for (std::size_t i = 0; i < (threads > 1 ? 2 : 1); ++i) {
      variants[i] = loop_contestant(name, data, std::make_shared<Loop>(weights_, threads, modes[i]), y);
      if (threads > 1) seconds[i] = session_.run.trial(variants[i]);
    }
    const std::size_t best = threads > 1 && seconds[1] < seconds[0] ? 1 : 0;
    add(std::move(variants[best]), threads > 1 ? name_of(modes[best]) : "");
  }

  session& session_;
  shape shape_;
  layer_of<Expert> layer_;
  decltype(rounded_layers(std::declval<const layer_of<Expert>&>(), shape(), rounded_storages())) rounded_;
  peers::layer_weights weights_;
  std::unique_ptr<peers::dense_ffn<Expert>> dense_;  // made when first needed
};

std::vector<layer_case> cases_of(const options& asked, const shape& on) {
  std::vector<std::int64_t> counts{1, 4, 16, 64, 512, 2048};
  if (asked.quick) counts = {1, 16, 512};
  if (asked.smoke) counts = {1, 4};
  std::vector<layer_case> cases;
  for (const std::int64_t rows : counts) {
    cases.push_back({rows, "uniform", false, asked.threads, true});
    cases.push_back({rows, "uniform_planned", false, asked.threads, false});
    cases.push_back({rows, "zipf_planned", false, asked.threads, true});
    if (rows <= 64) cases.push_back({rows, "uniform", true, asked.threads, true});
    // One thread, for the gain by the others.
    if (asked.threads > 1 && (rows == 1 || rows == 16 || rows == 512))
      cases.push_back({rows, "uniform", false, 1, on.name == "olmoe"});
  }
  return cases;
}

template <typename Expert>
void run_shape(session& s, const shape& on) {
  std::vector<layer_case> cases = cases_of(s.asked, on);
  std::erase_if(cases, [&](const layer_case& c) { return !s.wants(c.title(on)); });
  if (cases.empty()) return;
  shape_bench<Expert> bench(s, on);
  bench.check();
  for (const layer_case& c : cases) bench.run(c);
}

}  // namespace

void layer_cases(session& s) {
  for (const shape& on : published_shapes()) {
    if (s.asked.smoke && on.name != "tiny") continue;
    run_shape<sluice::swiglu<float>>(s, on);
    s.refresh_limits();
  }
}

}  // namespace bench
