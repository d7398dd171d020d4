// Apart from its users: what loads any published layer takes the compiler longer than all the rest of the program.
#include "session.hpp"

#include <sluice/exec/thread_pool.hpp>

#include <chrono>

namespace checkpoint {

void run_layers(const sluice::checkpoint_model& model, const layer_options& o, const sluice::matrix<float>& x,
                const std::function<void(const layer_result&, const sluice::published_layer<float>&,
                                         const sluice::matrix<float>&)>& see) {
  using clock = std::chrono::steady_clock;
  const auto seconds_since = [](clock::time_point begin) {
    return std::chrono::duration<double>(clock::now() - begin).count();
  };
  sluice::thread_pool threads(o.threads);
  const auto blocks = chosen_blocks(model, o);
  work_bar bar(o.progress);
  struct step {
    work_bar& bar;
    std::string name;
    std::size_t number, count;
  };
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    layer_result result{.block = blocks[i]};
    step now{bar, to_string(blocks[i]), 2 * i, 2 * blocks.size()};
    sluice::layer_load_options load;
    load.executor = threads;
    load.ignored = o.ignored;
    load.report = &result.loaded;
    load.progress = [](void* user, std::uint64_t done, std::uint64_t total) {
      const step& s = *static_cast<const step*>(user);
      s.bar.draw("loading " + s.name, static_cast<double>(done), static_cast<double>(total), s.number, s.count);
    };
    load.user = &now;
    auto begin = clock::now();
    const auto layer = sluice::load_published_layer<float>(model, blocks[i], weight_type_of(o.dtype), load);
    result.load_seconds = seconds_since(begin);
    result.experts = layer->experts();

    bar.draw("running " + now.name, 0, 1, now.number + 1, now.count);
    sluice::matrix<float> y(x.rows(), x.cols());
    sluice::routing_context<float> context;
    context.executor = threads;
    result.drawn_ids = model.config().looks_experts_up(blocks[i]);
    const auto ids = draw_ids(result.drawn_ids ? x.rows() : 0, model.config().vocabulary, o.seed);
    context.token_ids = ids;
    begin = clock::now();
    layer->forward(x, y, context);
    result.run_seconds = seconds_since(begin);
    result.bytes_touched = layer->weight_bytes();
    for (sluice::index_t e = 0; e < layer->experts(); ++e)
      if (layer->plan().load(e) == 0) result.bytes_touched -= layer->expert_bytes(e);
    see(result, *layer, y);
  }
}

}  // namespace checkpoint
