/// Trains one small model on handwritten digits once per router and shows what the routers learned.
///
///   digits                     all routers it knows, a table, and digits_routing.svg
///   digits --router top_k      one of them;  --help says what else there is
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "dataset.hpp"
#include "families.hpp"
#include "heatmap.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "shared.hpp"
#include "table.hpp"
#include "train.hpp"

namespace {

using namespace digits;

/// Trains a family with each of the seeds.
result train_family(const family& f, const options& o, const dataset& data, progress& shown) {
  std::vector<result> runs;
  for (int i = 0; i < o.seeds; ++i) {
    training how;
    how.seed = o.seed + static_cast<std::uint64_t>(i);
    if (o.epochs > 0) how.epochs = o.epochs;
    how.threads = o.threads;
    how.patch = o.patch;
    shown.begin(std::string(f.name) + (o.seeds > 1 ? ", seed " + std::to_string(how.seed) : ""));
    runs.push_back(f.train(how, data, shown));
    shown.finish(runs.back().accuracy);
  }
  return mean(runs);
}

int run(const options& o) {
  const dataset data = read_dataset(o.data);
  require_writable(o.svg);
  if (!o.csv.empty()) require_writable(o.csv);

  const auto style = o.quiet                         ? progress_style::none
                     : o.bar || stderr_is_terminal() ? progress_style::bar
                                                     : progress_style::lines;
  const int epochs = o.epochs > 0 ? o.epochs : training{}.epochs;
  progress shown(std::cerr, style, epochs * o.seeds * (1 + static_cast<int>(o.routers.size())), stderr_width());

  std::vector<result> results;
  results.push_back(train_family(dense_family(), o, data, shown));
  for (const family& f : all_families())
    if (std::find(o.routers.begin(), o.routers.end(), f.name) != o.routers.end())
      results.push_back(train_family(f, o, data, shown));

  std::cout << "Handwritten digits: " << data.train.size() << " to train, " << data.test.size() << " to test, seed "
            << o.seed << (o.seeds > 1 ? " and the next ones, means over " + std::to_string(o.seeds) + " seeds" : "")
            << "\n\n";
  print_table(std::cout, results);
  std::cout
      << "\nMeasured on the test images, except the speed. load CV: deviation of the experts' loads over their mean, "
         "0 is even.\ndropped: tokens that no expert took. active: parameters that one token uses on average. "
         "speed: with "
      << o.threads << (o.threads == 1 ? " thread.\n" : " threads.\n")
      << accuracy_noise(results, data.test.size(), o.seeds) << '\n';
  write_file(o.svg, heatmap(results));
  if (!o.csv.empty()) write_file(o.csv, csv(results));
  std::cout << "\nWhich expert sees which digit: " << o.svg << '\n' << std::flush;
  return std::cout ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::vector<std::string_view> names;
    for (const digits::family& f : digits::all_families()) names.push_back(f.name);
    const auto o = digits::parse_options(argc, argv, names, std::cout);
    return o ? run(*o) : EXIT_SUCCESS;
  } catch (const digits::input_error& e) {
    std::cerr << "digits: " << e.what() << '\n';
    return 2;
  } catch (const std::exception& e) {
    std::cerr << "digits: " << e.what() << '\n';
    return EXIT_FAILURE;
  }
}
