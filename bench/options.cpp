#include "options.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <thread>

namespace bench {

std::optional<options> parse_options(int argc, const char* const* argv, std::ostream& out) {
  options o;
  CLI::App app(
      "Measures this machine, then sluice's layers on published shapes beside a naive loop, Eigen and oneDNN loops and "
      "a\n"
      "dense layer of equal cost, and writes report.md, report.csv, roofline.svg, storages.svg and sweep.svg.");
  app.get_formatter()->column_width(24);
  app.add_option("--out", o.folder, "folder of the report (default " + o.folder + ")")->type_name("FOLDER");
  app.add_option("--filter", o.filter, "only cases whose name, such as \"olmoe T=16 uniform\", contains TEXT")
      ->type_name("TEXT");
  app.add_option("--threads", o.threads, "threads to use (default: all processors)")
      ->type_name("N")
      ->check(CLI::Range(1, 1024));
  app.add_flag("--quick", o.quick, "fewer token counts and repetitions: a few minutes become about one");
  app.add_flag("--smoke", o.smoke, "the smallest shape for a moment: only proves that the report is written");
  app.add_flag("--quiet", o.quiet, "show no progress");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    out << app.help();
    return std::nullopt;
  } catch (const CLI::ParseError& e) {
    std::string message = e.what();
    std::replace(message.begin(), message.end(), '\n', ' ');
    throw input_error(message + " (--help shows what is possible)");
  }
  if (o.folder.empty()) throw input_error("--out needs the name of a folder");
  if (o.threads == 0) o.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return o;
}

}  // namespace bench
