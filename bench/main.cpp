/// Measures the machine and sluice's layers on it, and writes a report.
///
///   sluice_bench                  everything, into bench-report/report.md, report.csv, roofline.svg, storages.svg and sweep.svg
///   sluice_bench --quick          a minute or two;  --filter olmoe  some cases;  --help  what else there is
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <string_view>
#include <system_error>

#include "report.hpp"
#include "session.hpp"
#include "team.hpp"
#include "waiting_time.hpp"

namespace {

using namespace bench;

void write_file(const std::filesystem::path& path, std::string_view text) {
  errno = 0;
  std::ofstream out(path, std::ios::binary);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  out.close();
  if (!out) throw input_error(path.string() + ": cannot write the file: " + std::strerror(errno));
}

int run(const options& o) {
  const std::filesystem::path folder = o.folder;
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed) throw input_error(o.folder + ": cannot make the folder: " + failed.message());
  for (const char* name : {"report.md", "report.csv", "roofline.svg", "storages.svg", "sweep.svg"})
    write_file(folder / name, "");  // now, not in ten minutes

  const auto begin = steady_clock::now();
  const cache_sizes caches = read_cache_sizes();
  patience p;
  if (o.quick) p = {0.15, 3, 15};
  if (o.smoke) p = {0.01, 2, 2};
  session s{o, caches, {}, {}, runner(p), cache_flush(o.smoke ? 1 << 20 : caches.l3, o.threads), {}};
  s.all.threads = o.threads;
  memory_cases(s);
  s.refresh_limits();
  layer_cases(s);
  training_cases(s);
  factorized_cases(s);
  other_layer_cases(s);
  adapter_cases(s);
  growth_cases(s);
  routing_cases(s);
  codebook_cases(s);
  rounding_cases(s);
  attention_cases(s);
  executor_cases(s);
  sweep_cases(s);
  s.refresh_limits();
  apply_limits(s);
  if (const auto seconds = read_waiting_time())
    s.found.waited = {*seconds, seconds_between(begin, steady_clock::now())};

  const facts environment = describe_environment(caches, o.threads);
  write_file(folder / "report.md", markdown(s, environment));
  write_file(folder / "report.csv", csv(s.found.cases));
  write_file(folder / "roofline.svg", roofline_svg(s, environment));
  write_file(folder / "storages.svg", storage_svg(s));
  write_file(folder / "sweep.svg", sweep_svg(s));
  std::cout << "The report: " << (folder / "report.md").string() << '\n' << std::flush;
  return std::cout ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto o = bench::parse_options(argc, argv, std::cout);
    return o ? run(*o) : EXIT_SUCCESS;
  } catch (const bench::input_error& e) {
    std::cerr << "sluice_bench: " << e.what() << '\n';
    return 2;
  } catch (const std::exception& e) {
    std::cerr << "sluice_bench: " << e.what() << '\n';
    return EXIT_FAILURE;
  }
}
