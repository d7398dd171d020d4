/// Several tasks over common experts: MMoE and MMoE-Ex against one shared network, on two generated tasks whose kinship
/// is set.
///
///   multitask             errors of both tasks over kinship, and what a batch costs, in a minute;   --help says more
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "shared/command_line.hpp"
#include "shared/parallel_jobs.hpp"
#include "shared/progress_line.hpp"
#include "shared/text.hpp"
#include "train.hpp"

namespace {

using namespace multitask;

struct options {
  training how;
  int seeds = 3, threads = 2;
  index_t calls = 2000;
  bool quiet = false;
};

struct kind {
  std::string name;
  std::function<measured(const related_tasks&, const training&)> train;
  std::function<latency(index_t calls)> measure;
};

/// `make(seed)` makes the bottom.
template <typename Make>
kind make_kind(std::string name, Make make) {
  return {std::move(name),
          [=](const related_tasks& data, const training& how) {
            two_towers model(make(how.seed));
            return train(model, data, how);
          },
          [=](index_t calls) {
            two_towers model(make(1));
            sluice::initialize(model, 1);
            return measure_latency(model, calls);
          }};
}

std::vector<kind> all_kinds() {
  return {make_kind("shared bottom", [](std::uint64_t) { return shared_bottom(); }),
          make_kind("MMoE", [](std::uint64_t seed) { return gated_bottom(0, seed); }),
          make_kind("MMoE-Ex", [](std::uint64_t seed) { return gated_bottom(0.5, seed); })};
}

int compare(const options& o) {
  const std::vector<kind> kinds = all_kinds();
  const std::vector<double> cosines{1, 0.9, 0.5, 0};
  const auto runs = static_cast<std::size_t>(o.seeds);
  std::vector<measured> results(cosines.size() * kinds.size() * runs);
  {
    shared::progress_line line(std::cerr, shared::stderr_width());
    std::mutex shown;
    std::size_t done = 0;
    shared::run_jobs(results.size(), o.threads, [&](std::size_t i) {
      training how = o.how;
      how.seed += i % runs;
      const kind& k = kinds[i / runs % kinds.size()];
      results[i] = k.train(related_tasks(cosines[i / runs / kinds.size()], how.seed), how);
      const std::scoped_lock lock(shown);
      ++done;
      if (!o.quiet && shared::stderr_is_terminal())
        line.draw(static_cast<double>(done) / static_cast<double>(results.size()), k.name, true);
    });
  }

  std::vector<std::vector<std::string>> table{{"cosine"}};
  for (const kind& k : kinds)
    for (const char* const task : {", task 1", ", task 2"}) table[0].push_back(k.name + task);
  for (std::size_t p = 0; p < cosines.size(); ++p) {
    table.push_back({shared::fixed(cosines[p], 1)});
    for (std::size_t k = 0; k < kinds.size(); ++k)
      for (std::size_t q = 0; q < tasks; ++q) {
        double sum = 0;
        for (std::size_t r = 0; r < runs; ++r) sum += results[(p * kinds.size() + k) * runs + r].error[q];
        table.back().push_back(shared::fixed(sum / static_cast<double>(runs), 4));
      }
  }
  std::cout << "Two tasks, " << o.how.steps << " steps of " << batch_rows << " examples; means over " << o.seeds
            << (o.seeds == 1 ? " seed" : " seeds") << ".\n\n";
  shared::print_columns(std::cout, table, 0);
  std::cout << "\nMean square errors on examples that nobody saw, over the variance of the labels. cosine: between the "
               "weights of the two tasks.\n\n";

  std::vector<std::vector<std::string>> costs{{"model", "parameters", "p50 us", "p99 us"}};
  for (std::size_t k = 0; k < kinds.size(); ++k) {
    const latency l = kinds[k].measure(o.calls);
    costs.push_back({kinds[k].name, shared::grouped(results[k * runs].parameters), shared::fixed(l.median, 0),
                     shared::fixed(l.p99, 0)});
  }
  shared::print_columns(std::cout, costs, 0);
  std::cout << "\nInference on a batch of " << batch_rows << ", one thread, " << o.calls << " calls.\n" << std::flush;
  return std::cout ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    options o;
    bool quick = false;
    CLI::App app("Trains MMoE, MMoE-Ex and one shared network on two tasks whose kinship is set.");
    app.get_formatter()->column_width(24);
    shared::add_number<index_t>(app, "--steps", o.how.steps, 1, 1 << 24, "of training (default 3000)");
    shared::add_number(app, "--seeds", o.seeds, 1, 1000, "trainings of each (default 3)");
    shared::add_number<std::uint64_t>(app, "--seed", o.how.seed, 0, UINT64_MAX / 2, "the first (default 1)");
    shared::add_number(app, "--threads", o.threads, 1, 256,
                       "trainings at a time (default 2; errors do not depend on it)");
    shared::add_number<index_t>(app, "--calls", o.calls, 1, 1 << 24, "whose time is taken (default 2000)");
    app.add_flag("--quick", quick, "one seed and few steps: to see that all runs, not to learn anything");
    app.add_flag("--quiet", o.quiet, "show no progress");
    if (!shared::parse(app, argc, argv, std::cout)) return EXIT_SUCCESS;
    if (quick) {
      o.how.steps = 20, o.how.test_rows = 256;
      o.seeds = 1, o.calls = 10;
    }
    return compare(o);
  } catch (const shared::input_error& e) {
    std::cerr << "multitask: " << e.what() << '\n';
    return 2;
  } catch (const std::exception& e) {
    std::cerr << "multitask: " << e.what() << '\n';
    return EXIT_FAILURE;
  }
}
