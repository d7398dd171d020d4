/// The command line of the language_model program: `train`, `resume`, `write` and `compare`.
#pragma once

#include <CLI/CLI.hpp>

#include <algorithm>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "description.hpp"
#include "shared/command_line.hpp"
#include "writing.hpp"

// The build says where the library's headers lie, so that the program runs from any folder.
#ifndef SLUICE_EXAMPLE_TEXT
#define SLUICE_EXAMPLE_TEXT "include/sluice"
#endif

namespace language_model {

/// What the commands share that work for some time.
struct running {
  std::string text = SLUICE_EXAMPLE_TEXT;
  int threads = 2;
  bool quiet = false, bar = false;
};

struct train_options {
  running run;
  description what;
  std::string model = "language_model.safetensors";
  index_t save_every = 100, stop_after = 0;
  bool resume = false;
};

struct write_options {
  std::string model, prompt;
  int threads = 2;
  std::uint64_t seed = 1;
  writing how;
};

struct compare_options {
  running run;
  std::vector<std::string> kinds;  ///< empty: all
  description what;
  std::string svg = "language_model.svg", csv;
};

enum class command { train, write, compare };

struct options {
  command asked = command::train;
  train_options train;
  write_options write;
  compare_options compare;
};

namespace detail {

/// An option that takes a number in [least, most], which may have a fraction.
inline void add_decimal(CLI::App& app, const std::string& name, double& target, double least, double most,
                        const std::string& help) {
  const auto read = [=, &target](const std::string& text) {
    if (!read_number(text, target, least, most))
      throw shared::input_error(name + " needs a number from " + shortest(least) + " to " + shortest(most) + ", not " +
                                shared::in_quotes(text));
  };
  app.add_option_function<std::string>(name, read, help)->type_name("X");
}

inline void add_running(CLI::App& app, running& r) {
  app.add_option("--text", r.text, "a file, or a folder whose files are joined (default: the library's headers)")
      ->type_name("PATH");
  shared::add_number(app, "--threads", r.threads, 1, 256, "threads (default 2; results do not depend on it)");
  app.add_flag("--quiet", r.quiet, "show no progress");
  app.add_flag("--bar", r.bar, "draw the progress bar even when it does not go to a terminal");
}

inline void add_description(CLI::App& app, description& d, bool& quick) {
  const auto about = [](const std::string& key) -> std::string {
    if (key == "width") return "numbers that a byte becomes (a multiple of 64, default 64)";
    if (key == "depth") return "blocks that it goes through";
    if (key == "length") return "bytes that a model sees";
    if (key == "steps") return "steps of training";
    if (key == "windows") return "windows of text a step";
    if (key == "rate") return "of learning, at its peak";
    if (key == "decay") return "of weights";
    if (key == "validation") return "windows that tell how good a model is";
    return "where draws begin";
  };
  for_each_number(d, [&](const char* key, auto& number, const auto& least, const auto& most) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(number)>, double>)
      add_decimal(app, std::string("--") + key, number, least, most,
                  about(key) + " (default " + shortest(number) + ")");
    else
      shared::add_number(app, std::string("--") + key, number, least, most,
                         about(key) + (about(key).ends_with(')') ? "" : " (default " + std::to_string(number) + ")"));
  });
  app.add_flag("--quick", quick, "a tiny model and a few steps: to see that all runs, not to learn anything");
}

/// Sizes with which everything runs within seconds.
inline void make_quick(description& d) {
  d.size = {.width = 64, .depth = 2, .length = 32};
  d.how.steps = 8;
  d.how.windows = 2;
  d.how.validation = 4;
}

}  // namespace detail

/// Reads the command line. Returns nothing when help or the list was asked for (and written to `out`); throws
/// input_error when a value is wrong.
inline std::optional<options> parse_options(int argc, const char* const* argv, const std::vector<std::string>& known,
                                            std::ostream& out) {
  using shared::input_error, shared::in_quotes;
  options o;
  CLI::App app("Trains small language models of bytes whose parts are mixtures of experts, and lets them write.");
  app.require_subcommand(1);
  app.get_formatter()->column_width(24);
  bool list = false, quick = false;

  CLI::App& train = *app.add_subcommand("train", "train a model, save it now and then, and let it write a little");
  train.add_option("--kind", o.train.what.kind, "which one (default " + o.train.what.kind + ")")->type_name("NAME");
  train.add_flag("--list", list, "print the names of all kinds and stop");
  train.add_option("--model", o.train.model, "file to write (default " + o.train.model + ")")->type_name("FILE");
  CLI::App& resume =
      *app.add_subcommand("resume", "go on with a training that was stopped: it ends as if it had not been");
  resume.add_option("model", o.train.model, "the file that train wrote")->required()->type_name("FILE");
  for (CLI::App* const a : {&train, &resume}) {
    detail::add_running(*a, o.train.run);
    shared::add_number<index_t>(*a, "--save-every", o.train.save_every, 1, 1 << 24, "steps (default 100)");
    shared::add_number<index_t>(*a, "--stop-after", o.train.stop_after, 1, 1 << 24, "steps, to be resumed later");
  }
  detail::add_description(train, o.train.what, quick);

  CLI::App& write = *app.add_subcommand("write", "let a model write");
  write.add_option("model", o.write.model, "the file that train wrote")->required()->type_name("FILE");
  write.add_option("--prompt", o.write.prompt, "what it goes on with (default: nothing)")->type_name("TEXT");
  shared::add_number<index_t>(write, "--bytes", o.write.how.bytes, 1, 1 << 24, "how many (default 400)");
  detail::add_decimal(write, "--temperature", o.write.how.temperature, 0, 100,
                      "0: always the likeliest byte; 1: as the model says (default 0.8)");
  shared::add_number<std::uint64_t>(write, "--seed", o.write.seed, 0, UINT64_MAX / 2, "where draws begin (default 1)");
  shared::add_number(write, "--threads", o.write.threads, 1, 256, "threads (default 2; results do not depend on it)");

  CLI::App& compare =
      *app.add_subcommand("compare", "train every kind of model on the same text: a table and a picture");
  std::vector<std::string> asked;
  compare.add_option("--kind", asked, "kinds to train, separated by commas or given one by one (default all)")
      ->delimiter(',')
      ->type_name("NAME");
  compare.add_flag("--list", list, "print their names and stop");
  detail::add_running(compare, o.compare.run);
  detail::add_description(compare, o.compare.what, quick);
  compare.add_option("--svg", o.compare.svg, "picture to write (default " + o.compare.svg + ")")->type_name("FILE");
  compare.add_option("--csv", o.compare.csv, "table to write (default: none)")->type_name("FILE");

  // --quick changes what is said of sizes nowhere else, so it comes first.
  for (int i = 1; i < argc; ++i)
    if (std::string_view(argv[i]) == "--quick")
      for (description* const d : {&o.train.what, &o.compare.what}) detail::make_quick(*d);
  if (!shared::parse(app, argc, argv, out)) return std::nullopt;
  if (list) {
    for (const std::string& name : known) out << name << '\n';
    return std::nullopt;
  }
  o.asked = compare.parsed() ? command::compare : write.parsed() ? command::write : command::train;
  o.train.resume = resume.parsed();
  o.write.how.random = sluice::random_source(o.write.seed);
  const auto is_known = [&](const std::string& name) {
    return std::find(known.begin(), known.end(), name) != known.end();
  };
  for (const std::string& name : asked)
    if (!is_known(name)) throw input_error("unknown kind " + in_quotes(name) + "; --list prints their names");
  if (!is_known(o.train.what.kind))
    throw input_error("unknown kind " + in_quotes(o.train.what.kind) + "; --list prints their names");
  for (const std::string& name : known)
    if (std::find(asked.begin(), asked.end(), name) != asked.end()) o.compare.kinds.push_back(name);
  for (const description* const d : {&o.train.what, &o.compare.what})
    if (d->size.width % 64 != 0)
      throw input_error("--width needs a multiple of 64, not " + std::to_string(d->size.width));
  for (const running* const r : {&o.train.run, &o.compare.run})
    if (r->quiet && r->bar) throw input_error("--quiet and --bar contradict each other");
  return o;
}

}  // namespace language_model
