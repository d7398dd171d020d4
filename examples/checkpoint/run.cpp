#include <sluice/io/safetensors_writer.hpp>

#include <list>

#include "commands.hpp"
#include "output.hpp"
#include "session.hpp"
#include "text_table.hpp"

namespace checkpoint {

void run(const run_options& o) {
  if (!o.output.empty()) require_writable(o.output, false);
  const sluice::checkpoint_model model(o.model, o.prefix);
  const sluice::matrix<float> x = tokens_for(model, o);

  std::vector<std::vector<std::string>> rows{{"layer", "experts", "load s", "run s", "tokens/s", "MB touched"}};
  std::list<sluice::matrix<float>> outputs;  // the writer refers to them
  sluice::safetensors_writer file;
  std::string notes;
  double load = 0, run = 0;
  run_layers(model, o, x, [&](const layer_result& r, const auto&, const sluice::matrix<float>& y) {
    notes += loading_notes(r);
    load += r.load_seconds;
    run += r.run_seconds;
    rows.push_back({to_string(r.block), std::to_string(r.experts), shared::fixed(r.load_seconds, 3),
                    shared::fixed(r.run_seconds, 4), shared::fixed(static_cast<double>(x.rows()) / r.run_seconds, 0),
                    shared::fixed(static_cast<double>(r.bytes_touched) / 1e6, 2)});
    if (o.output.empty()) return;
    outputs.push_back(y);
    file.add(to_string(r.block) + ".y", {y.rows(), y.cols()},
             std::span<const float>(outputs.back().data(), static_cast<std::size_t>(y.size())));
  });
  check_interrupt();
  if (!o.output.empty()) file.save(o.output);

  std::cout << model.config().model_type << ", " << x.rows() << " tokens of width " << x.cols() << ", weights as "
            << o.dtype << ", " << o.threads << (o.threads == 1 ? " thread\n\n" : " threads\n\n");
  print_aligned(std::cout, rows);
  if (!notes.empty()) std::cout << '\n' << notes;
  std::cout << "\nloaded in " << shared::fixed(load, 3) << " s, ran in " << shared::fixed(run, 4)
            << " s. Every layer got the same tokens: these are layers, not a whole model.\n";
  if (!o.output.empty()) std::cout << "outputs: " << o.output << '\n';
}

}  // namespace checkpoint
