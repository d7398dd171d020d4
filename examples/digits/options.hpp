/// The command line of the digits example.
#pragma once

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "dataset.hpp"
#include "shared.hpp"

// The build says where the project's data lie, so that the program runs from any folder.
#ifndef SLUICE_EXAMPLE_DATA
#define SLUICE_EXAMPLE_DATA "examples/data"
#endif

namespace digits {

struct options {
  std::uint64_t seed = 1;
  int seeds = 1;                     // trains with seed, seed + 1, ... and reports means
  int epochs = 0;                    // 0: what main() finds enough for every router
  std::vector<std::string> routers;  // in the order in which they are known, no doubles
  std::string data;
  std::string svg = "digits_routing.svg";
  std::string csv;  // empty: no CSV
  int threads = 1;
  patch_shape patch = patch_shape::square;
  bool quiet = false;
  bool bar = false;
};

namespace detail {

inline std::string join(std::span<const std::string_view> words) {
  std::string out;
  for (const auto word : words) (out += out.empty() ? "" : ", ") += word;
  return out;
}

/// The known routers that were asked for, all of them by default.
inline std::vector<std::string> choose_routers(const std::vector<std::string>& asked,
                                               std::span<const std::string_view> known) {
  const auto is_asked = [&](std::string_view name) {
    return std::find(asked.begin(), asked.end(), name) != asked.end();
  };
  for (const auto& name : asked)
    if (name != "all" && std::find(known.begin(), known.end(), name) == known.end())
      throw input_error("unknown router " + in_quotes(name) + "; known are: all, " + join(known));
  std::vector<std::string> chosen;
  for (const auto name : known)
    if (asked.empty() || is_asked("all") || is_asked(name)) chosen.emplace_back(name);
  return chosen;
}

/// The project's own copy where the program was built, or else the one below the current folder.
inline std::string default_data_file() {
  const std::string built_in = SLUICE_EXAMPLE_DATA "/digits.csv";
  std::error_code ignored;
  return std::filesystem::exists(built_in, ignored) ? built_in : "examples/data/digits.csv";
}

}  // namespace detail

/// Reads the command line. Returns nothing when help was asked for (and written to `out`); throws input_error when a
/// value is wrong. `known` are the names that --router takes.
inline std::optional<options> parse_options(int argc, const char* const* argv, std::span<const std::string_view> known,
                                            std::ostream& out) {
  options o;
  std::vector<std::string> asked;
  std::string patch = "square";
  CLI::App app(
      "Trains one small mixture-of-experts model on handwritten digits once per router, beside a dense model of\n"
      "equal cost, prints a table and draws which expert sees which digit.\n"
      "Known routers: " +
      detail::join(known));
  app.get_formatter()->column_width(24);
  add_number<std::uint64_t>(app, "--seed", o.seed, 0, UINT64_MAX, "start of every random number (default 1)");
  add_number(app, "--seeds", o.seeds, 1, 1000, "train with N seeds, --seed and the next ones, and show means");
  add_number(app, "--epochs", o.epochs, 1, 100000, "passes over the training images");
  app.add_option("--router", asked, "routers to train, separated by commas or given one by one (default all)")
      ->delimiter(',')
      ->type_name("NAME");
  const auto* const data =
      app.add_option("--data", o.data, "the digits as CSV: 64 pixels 0..16 and the class, no header")
          ->type_name("FILE");
  app.add_option("--svg", o.svg, "picture to write (default " + o.svg + ")")->type_name("FILE");
  const auto* const csv = app.add_option("--csv", o.csv, "write the table as CSV too")->type_name("FILE");
  add_number(app, "--threads", o.threads, 1, 1024,
                     "threads to use (default 1: the model is small; results do not depend on it)");
  app.add_option("--patch", patch, "a token is a square of 2x2 pixels or a row of 8 (default square)")
      ->type_name("square|row");
  app.add_flag("--quiet", o.quiet, "show no progress");
  app.add_flag("--bar", o.bar, "draw the progress bar even when it does not go to a terminal");

  if (!shared::parse(app, argc, argv, out)) return std::nullopt;
  if (o.quiet && o.bar) throw input_error("--quiet and --bar contradict each other");
  if (patch != "square" && patch != "row") throw input_error("--patch needs square or row, not " + in_quotes(patch));
  o.patch = patch == "row" ? patch_shape::row : patch_shape::square;
  o.routers = detail::choose_routers(asked, known);
  if (data->count() == 0) o.data = detail::default_data_file();
  for (const auto& [name, file] : {std::pair<std::string, std::string>{"--svg", o.svg}, {"--csv", o.csv}}) {
    if (file.empty() && (name == "--svg" || csv->count() > 0)) throw input_error(name + " needs the name of a file");
    std::error_code none;
    if (!file.empty() && std::filesystem::equivalent(file, o.data, none))
      throw input_error(name + " " + file + " would overwrite the data");
  }
  if (o.csv == o.svg) throw input_error("--csv and --svg name the same file, " + o.svg);
  return o;
}

}  // namespace digits
