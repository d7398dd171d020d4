#include <numeric>

#include "commands.hpp"
#include "output.hpp"
#include "routing_trace.hpp"
#include "session.hpp"
#include "text_table.hpp"
#include "trace_svg.hpp"
#include "trace_text.hpp"

namespace checkpoint {

void trace(const trace_options& o) {
  for (const std::string* const path : {&o.csv, &o.json, &o.svg})
    if (!path->empty()) require_writable(*path);
  const sluice::checkpoint_model model(o.model, o.prefix);
  const sluice::matrix<float> x = tokens_for(model, o);
  routing_trace traced;
  std::string notes;
  run_layers(model, o, x, [&](const layer_result& r, const sluice::published_layer<float>& layer, const auto&) {
    notes += loading_notes(r);
    traced.add(to_string(r.block), layer.plan());
  });
  check_interrupt();

  if (!o.csv.empty()) {
    text_file file(o.csv);
    write_csv(traced, [&file](const std::string& text) {
      check_interrupt();
      file.write(text);
    });
    file.commit();
  }
  if (!o.json.empty()) {
    nlohmann::ordered_json layers = nlohmann::ordered_json::array();
    for (const traced_layer& layer : traced.layers()) layers.push_back(to_json(layer));
    const nlohmann::ordered_json summary{{"model", o.model},
                                         {"model_type", model.config().model_type},
                                         {"tokens", x.rows()},
                                         {"layers", std::move(layers)}};
    write_text(o.json, summary.dump(2) + '\n');
  }
  if (!o.svg.empty()) {
    std::vector<std::size_t> maps(traced.layers().size());
    std::iota(maps.begin(), maps.end(), std::size_t{0});
    const auto& config = model.config();
    write_text(o.svg,
               trace_picture(traced, maps, "Routing of " + config.model_type,
                             shared::grouped(x.rows()) + " tokens" +
                                 (o.input.empty() ? ", drawn from seed " + std::to_string(o.seed) : "") + ", through " +
                                 std::to_string(maps.size()) + (maps.size() == 1 ? " layer" : " layers") + " of " +
                                 std::to_string(config.experts) + " experts, " + std::to_string(config.top_k) +
                                 " a token. Every layer got the same tokens."));
  }

  std::vector<std::vector<std::string>> rows{
      {"layer", "tokens", "assignments", "dropped", "load entropy", "dead experts", "max / even load", "closest pair"}};
  for (const traced_layer& layer : traced.layers()) {
    const auto pairs = layer.top_pairs(1);
    rows.push_back({layer.name, std::to_string(layer.tokens), std::to_string(layer.assignments()),
                    std::to_string(layer.dropped), shared::percent(layer.entropy_normalised(), 1),
                    shared::percent(layer.dead_fraction(), 1), shared::fixed(layer.max_over_mean(), 2),
                    pairs.empty() ? "-"
                                  : std::to_string(pairs[0].first) + " and " + std::to_string(pairs[0].second) + ": " +
                                        std::to_string(pairs[0].tokens)});
  }
  print_aligned(std::cout, rows);
  if (!notes.empty()) std::cout << '\n' << notes;
  for (const std::string* const path : {&o.csv, &o.json, &o.svg})
    if (!path->empty()) std::cout << (path == &o.csv ? "\n" : "") << "written: " << *path << '\n';
}

}  // namespace checkpoint
