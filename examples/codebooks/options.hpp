/// The command line of the codebooks program: `compress` (the default) and `search`.
#pragma once

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "../shared/command_line.hpp"
#include "../shared/error.hpp"

// The build says where the project's data lie, so that the program runs from any folder.
#ifndef SLUICE_EXAMPLE_DATA
#define SLUICE_EXAMPLE_DATA "examples/data"
#endif

namespace codebooks {

using index_t = std::int64_t;

struct compress_options {
  std::vector<std::string> structures;  ///< empty: all
  std::string input = SLUICE_EXAMPLE_DATA "/digits.csv";
  bool is_digits = true;
  index_t patch = 4;
  std::uint64_t seed = 1;
  int epochs = 200;
  int threads = 2;
  bool quick = false;
  std::string svg = "codebooks.svg";
  bool quiet = false, bar = false;
};

struct search_options {
  std::string input;
  std::string queries;  ///< empty: every tenth vector, which is then not in the index
  std::string tensor, query_tensor;
  index_t parts = 8, lists = 0, probes = 8, neighbours = 10, rerank = 0;
  std::uint64_t seed = 1;
};

struct options {
  bool searches = false;
  compress_options compress;
  search_options search;
};

/// Reads the command line. Returns nothing when help or the list was asked for (and written to `out`); throws
/// input_error when a value is wrong.
inline std::optional<options> parse_options(int argc, const char* const* argv, const std::vector<std::string>& known,
                                            std::ostream& out) {
  using shared::input_error, shared::in_quotes, shared::add_number;
  options o;
  CLI::App app("Compresses vectors with every structure of codebooks, or searches among vectors by product codes.");
  app.require_subcommand(1);
  app.get_formatter()->column_width(24);

  compress_options& c = o.compress;
  CLI::App& compress = *app.add_subcommand(
      "compress", "train every quantiser inside a linear autoencoder: a table of bits, error and use, and a picture");
  std::vector<std::string> asked;
  std::string input;
  bool list = false;
  compress
      .add_option("--structure", asked, "quantisers to train, separated by commas or given one by one (default all)")
      ->delimiter(',')
      ->type_name("NAME");
  compress.add_flag("--list", list, "print their names and stop");
  compress.add_option("--input", input, "a CSV of vectors, or a PGM or PPM picture (default: the handwritten digits)")
      ->type_name("FILE");
  add_number<index_t>(compress, "--patch", c.patch, 1, 64, "pixels a side of the squares of a picture (default 4)");
  add_number<std::uint64_t>(compress, "--seed", c.seed, 0, UINT64_MAX / 2, "where draws begin (default 1)");
  add_number(compress, "--epochs", c.epochs, 1, 10000, "times that all vectors are seen (default 200)");
  add_number(compress, "--threads", c.threads, 1, 256, "trainings at a time (default 2; results do not depend on it)");
  compress.add_flag("--quick", c.quick, "few steps on few vectors: to see that all runs, not to learn anything");
  compress.add_option("--svg", c.svg, "picture to write (default " + c.svg + ")")->type_name("FILE");
  compress.add_flag("--quiet", c.quiet, "show no progress");
  compress.add_flag("--bar", c.bar, "draw the progress bar even when it does not go to a terminal");

  search_options& s = o.search;
  CLI::App& search = *app.add_subcommand(
      "search", "build an index of product codes over vectors and answer queries: recall against exact search, speed");
  search.add_option("input", s.input, "a CSV or safetensors of vectors")->required()->type_name("FILE");
  search.add_option("--queries", s.queries, "the same of queries (default: every tenth vector, kept out of the index)")
      ->type_name("FILE");
  search.add_option("--tensor", s.tensor, "the matrix of a safetensors (default: the first)")->type_name("NAME");
  search.add_option("--query-tensor", s.query_tensor, "that of the queries")->type_name("NAME");
  add_number<index_t>(search, "--parts", s.parts, 1, 4096, "pieces of a vector, a byte each (default 8)");
  add_number<index_t>(search, "--lists", s.lists, 0, 1 << 24, "inverted lists (default 0: every vector is scanned)");
  add_number<index_t>(search, "--probes", s.probes, 1, 1 << 24, "lists that a query visits (default 8)");
  add_number<index_t>(search, "--neighbours", s.neighbours, 1, 10000, "answers a query (default 10)");
  add_number<index_t>(search, "--rerank", s.rerank, 0, 1000000,
                      "candidates that are compared exactly in the end (default 0: none)");
  add_number<std::uint64_t>(search, "--seed", s.seed, 0, UINT64_MAX / 2, "where draws begin (default 1)");

  if (!shared::parse(app, argc, argv, out)) return std::nullopt;
  o.searches = search.parsed();
  if (list) {
    for (const std::string& name : known) out << name << '\n';
    return std::nullopt;
  }
  if (c.quiet && c.bar) throw input_error("--quiet and --bar contradict each other");
  if (c.svg.empty()) throw input_error("--svg needs the name of a file");
  if (!input.empty()) c.input = input, c.is_digits = false;
  if (c.svg == c.input) throw input_error(c.svg + " would overwrite the data");
  for (const std::string& name : asked)
    if (std::find(known.begin(), known.end(), name) == known.end())
      throw input_error("unknown structure " + in_quotes(name) + "; --list prints their names");
  for (const std::string& name : known)
    if (std::find(asked.begin(), asked.end(), name) != asked.end()) c.structures.push_back(name);
  return o;
}

}  // namespace codebooks
