/// The command line of the router study.
#pragma once

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <ostream>
#include <string>
#include <system_error>
#include <vector>

#include "../shared/command_line.hpp"
#include "../shared/error.hpp"

// The build says where the project's data lie, so that the program runs from any folder.
#ifndef SLUICE_EXAMPLE_DATA
#define SLUICE_EXAMPLE_DATA "examples/data"
#endif

namespace study {

struct options {
  std::vector<std::string> routers;  ///< in the order in which they are known; empty: all
  int seeds = 3;
  std::uint64_t seed = 1;
  int threads = 2;
  bool quick = false;
  std::string data = SLUICE_EXAMPLE_DATA "/digits.csv";
  std::string svg = "router_study.svg";
  std::string csv;
  bool quiet = false;
  bool bar = false;
};

/// Reads the command line. Returns nothing when help or the list was asked for (and written to `out`); throws
/// input_error when a value is wrong.
inline std::optional<options> parse_options(int argc, const char* const* argv, const std::vector<std::string>& known,
                                            std::ostream& out) {
  using shared::input_error, shared::in_quotes;
  options o;
  std::vector<std::string> asked;
  bool list = false;
  CLI::App app(
      "Trains every router on handwritten digits and on the clustered task of \"Towards Understanding Mixture of\n"
      "Experts\", and says which claims of the papers hold. A router takes up to half a minute.");
  app.get_formatter()->column_width(24);
  app.add_option("--router", asked, "routers to train, separated by commas or given one by one (default all)")
      ->delimiter(',')
      ->type_name("NAME");
  app.add_flag("--list", list, "print the names of the routers and stop");
  shared::add_number(app, "--seeds", o.seeds, 1, 100, "train with so many seeds and take means (default 3)");
  shared::add_number<std::uint64_t>(app, "--seed", o.seed, 0, UINT64_MAX / 2, "the first of them (default 1)");
  shared::add_number(app, "--threads", o.threads, 1, 256,
                     "trainings at a time (default 2; results do not depend on it)");
  app.add_flag("--quick", o.quick, "few steps on few data: to see that all runs, not to learn anything");
  app.add_option("--data", o.data, "the digits as CSV")->type_name("FILE");
  app.add_option("--svg", o.svg, "picture to write (default " + o.svg + ")")->type_name("FILE");
  app.add_option("--csv", o.csv, "write a row a training as CSV")->type_name("FILE");
  app.add_flag("--quiet", o.quiet, "show no progress");
  app.add_flag("--bar", o.bar, "draw the progress bar even when it does not go to a terminal");
  if (!shared::parse(app, argc, argv, out)) return std::nullopt;
  if (list) {
    for (const std::string& name : known) out << name << '\n';
    return std::nullopt;
  }
  if (o.quiet && o.bar) throw input_error("--quiet and --bar contradict each other");
  if (o.svg.empty()) throw input_error("--svg needs the name of a file");
  if (o.svg == o.csv) throw input_error("--csv and --svg name the same file, " + o.svg);
  for (const auto& file : {o.svg, o.csv}) {
    std::error_code none;
    if (!file.empty() && std::filesystem::equivalent(file, o.data, none))
      throw input_error(file + " would overwrite the data");
  }
  for (const std::string& name : asked)
    if (std::find(known.begin(), known.end(), name) == known.end())
      throw input_error("unknown router " + in_quotes(name) + "; --list prints their names");
  for (const std::string& name : known)
    if (std::find(asked.begin(), asked.end(), name) != asked.end()) o.routers.push_back(name);
  return o;
}

}  // namespace study
