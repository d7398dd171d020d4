// Apart from its users: what loads any published layer takes the compiler longer than all the rest of the program.
#include "session.hpp"

#include <sluice/exec/thread_pool.hpp>

#include <chrono>

namespace checkpoint {

ran_layer run_layer(const sluice::checkpoint_model& model, const sluice::block_id& block, const layer_options& o,
                    const sluice::matrix<float>& x, const sluice::executor_ref& executor,
                    const std::function<void(const std::string&, double)>& progress) {
  using clock = std::chrono::steady_clock;
  const auto seconds_since = [](clock::time_point begin) {
    return std::chrono::duration<double>(clock::now() - begin).count();
  };
  struct step {
    const std::function<void(const std::string&, double)>& progress;
    std::string what;
  };
  ran_layer ran{{.block = block}, nullptr, sluice::matrix<float>(x.rows(), x.cols())};
  step loading{progress, "loading " + to_string(block)};
  sluice::layer_load_options load;
  load.executor = executor;
  load.ignored = o.ignored;
  load.report = &ran.result.loaded;
  load.progress = [](void* user, std::uint64_t done, std::uint64_t total) {
    const step& s = *static_cast<const step*>(user);
    s.progress(s.what, total > 0 ? static_cast<double>(done) / static_cast<double>(2 * total) : 0.5);
  };
  load.user = &loading;
  auto begin = clock::now();
  ran.layer = sluice::load_published_layer<float>(model, block, weight_type_of(o.dtype), load);
  ran.result.load_seconds = seconds_since(begin);
  ran.result.experts = ran.layer->experts();

  progress("running " + to_string(block), 0.5);
  sluice::routing_context<float> context;
  context.executor = executor;
  ran.result.drawn_ids = model.config().looks_experts_up(block);
  const auto ids = draw_ids(ran.result.drawn_ids ? x.rows() : 0, model.config().vocabulary, o.seed);
  context.token_ids = ids;
  begin = clock::now();
  ran.layer->forward(x, ran.y, context);
  ran.result.run_seconds = seconds_since(begin);
  ran.result.bytes_touched = ran.layer->weight_bytes();
  for (sluice::index_t e = 0; e < ran.layer->experts(); ++e)
    if (ran.layer->plan().load(e) == 0) ran.result.bytes_touched -= ran.layer->expert_bytes(e);
  return ran;
}

void run_layers(const sluice::checkpoint_model& model, const layer_options& o, const sluice::matrix<float>& x,
                const std::function<void(const layer_result&, const sluice::published_layer<float>&,
                                         const sluice::matrix<float>&)>& see) {
  sluice::thread_pool threads(o.threads);
  const auto blocks = chosen_blocks(model, o);
  work_bar bar(o.progress);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const ran_layer ran = run_layer(model, blocks[i], o, x, threads, [&](const std::string& what, double part) {
      bar.draw(what, part, 1, i, blocks.size());
    });
    see(ran.result, *ran.layer, ran.y);
  }
}

}  // namespace checkpoint
