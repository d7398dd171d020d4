/// Looks into published mixture-of-experts models, runs and traces their layers, converts them and compares outputs.
///
///   checkpoint inspect FOLDER        what is in it;  --help says what else there is, COMMAND --help the options of each
///
/// Exit codes: 0 all right, 1 compare found more than the tolerance, 2 wrong usage, 3 a file cannot be read, trusted or
/// written, 4 out of memory, 130 interrupted (128 and the number of the signal).
#include <CLI/CLI.hpp>

#include <exception>
#include <iostream>
#include <new>
#include <stdexcept>

#include "../shared/command_line.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "words.hpp"

namespace {

using namespace checkpoint;

enum exit_code { ok = 0, differs = 1, usage = 2, bad_file = 3, no_memory = 4, ended_by_signal = 128 };

void add_model_options(CLI::App& app, model_options& o) {
  app.add_option("model", o.model, "folder with config.json, or an index or safetensors file beside one")->required();
  app.add_option("--prefix", o.prefix, "what tensors have in front of \"layers.\" (default: all that is usual is tried)");
}

CLI::Option* add_ignored(CLI::App& app, std::vector<std::string>& ignored) {
  return app
      .add_option("--ignore", ignored, "full names of tensors that a layer may leave over; * and ? stand for characters")
      ->type_name("PATTERN")
      ->allow_extra_args(false);
}

void add_layer_options(CLI::App& app, layer_options& o) {
  constexpr std::int64_t most = std::int64_t{1} << 40;
  add_model_options(app, o);
  shared::add_number<std::int64_t>(app, "--layer", o.layer, 0, 1 << 16, "only this block (default: every mixture)");
  app.add_flag("--decoder", o.decoder, "of a model with an encoder: the block of the decoder");
  app.add_option("--input", o.input, "tokens: X.csv (a token a line) or X.safetensors[:TENSOR]");
  shared::add_number<std::int64_t>(app, "--tokens", o.tokens, 0, most, "without --input: draw as many (default 64)");
  shared::add_number<std::uint64_t>(app, "--seed", o.seed, 0, ~std::uint64_t{0}, "of the draw (default 1)");
  app.add_option("--dtype", o.dtype, "what experts' weights are kept as: float, bfloat16 or float16 (default float)");
  add_ignored(app, o.ignored);
  shared::add_number<int>(app, "--threads", o.threads, 1, 1024, "threads (default 1); results do not depend on it");
  app.add_flag("--progress", o.progress, "a bar on stderr, also where that is no terminal");
}

int run_program(int argc, char** argv) {
  CLI::App app{
      "Published mixture-of-experts models: what is in them, and what their layers do.\n"
      "Exit codes: 0 all right; 1 compare found more than the tolerance; 2 wrong usage; 3 a file cannot be read,\n"
      "trusted or written; 4 out of memory; 130 interrupted. Files are written as a whole or not at all."};
  app.require_subcommand(1);

  inspect_options inspect_o;
  auto* const inspect_c =
      app.add_subcommand("inspect", "Prints model, layers, experts, shapes, types, bytes, active parameters");
  add_model_options(*inspect_c, inspect_o);
  inspect_c->add_flag("--json", inspect_o.json, "as JSON");

  run_options run_o;
  auto* const run_c = app.add_subcommand("run", "Sends tokens through one mixture or, each for itself, through all");
  add_layer_options(*run_c, run_o);
  run_c->add_option("--output", run_o.output, "safetensors file for the outputs, as layers.L.y [T,D]");

  trace_options trace_o;
  auto* const trace_c = app.add_subcommand("trace", "Does what run does, and says which tokens go to which experts");
  add_layer_options(*trace_c, trace_o);
  trace_c->add_option("--csv", trace_o.csv, "every choice: token,layer,rank,expert,weight");
  trace_c->add_option("--json", trace_o.json, "per layer: load, entropy, co-activation");
  trace_c->add_option("--svg", trace_o.svg, "a picture of load and co-activation");

  convert_options convert_o;
  auto* const convert_c = app.add_subcommand("convert", "Writes the model with another type or layout of its weights");
  add_model_options(*convert_c, convert_o);
  convert_c->add_option("target", convert_o.target, "a folder, or a file that ends in .safetensors")->required();
  convert_c->add_option("--dtype", convert_o.dtype, "float, double, bfloat16 or float16 (default: as they are)");
  convert_c->add_option("--layout", convert_o.layout, "per-expert, stacked, ... (default: as they are)");
  shared::add_number<std::uint64_t>(*convert_c, "--shard-bytes", convert_o.shard_bytes, 1, ~std::uint64_t{0},
                                    "most bytes of tensors in one file (default 5000000000)");
  convert_c->add_flag("--progress", convert_o.progress, "a bar on stderr, also where that is no terminal");

  quantize_options quantize_o;
  auto* const quantize_c = app.add_subcommand(
      "quantize", "Rounds the experts' weights to 4 or 8 bits and writes the model in the layout of compressed-tensors");
  add_model_options(*quantize_c, quantize_o);
  quantize_c->add_option("target", quantize_o.target, "a folder")->required();
  auto* const format =
      quantize_c->add_option("--format", quantize_o.format, "int4 or int8, with a scale a group (default int4)");
  shared::add_number<std::int64_t>(*quantize_c, "--group", quantize_o.group, 1, 1 << 24,
                                   "inputs that share a scale (default 32)");
  auto* const calibrate = quantize_c->add_option(
      "--calibrate", quantize_o.calibrate,
      "round by GPTQ on tokens: X.csv, X.safetensors[:TENSOR], or one that has layers.L.x [T,D] of every layer");
  quantize_c
      ->add_option("--budget", quantize_o.budget,
                   "most bits a weight over a layer's experts, scales included: MC-MoE says who gets 4 and who 8")
      ->type_name("BITS")
      ->needs(calibrate)
      ->excludes(format);
  quantize_c->add_option("--svg", quantize_o.svg, "a picture of bits and errors");
  add_ignored(*quantize_c, quantize_o.ignored)->needs(calibrate);
  shared::add_number<int>(*quantize_c, "--threads", quantize_o.threads, 1, 1024,
                          "threads (default 1); results do not depend on it");
  quantize_c->add_flag("--progress", quantize_o.progress, "a bar on stderr, also where that is no terminal");

  compare_options compare_o;
  auto* const compare_c = app.add_subcommand("compare", "The largest and mean difference of two output files");
  compare_c->add_option("a", compare_o.a, "a safetensors file")->required();
  compare_c->add_option("b", compare_o.b, "another with the same tensors")->required();
  compare_c->add_option("--tolerance", compare_o.tolerance, "largest difference for exit code 0 (default: any)")
      ->check(CLI::NonNegativeNumber);

  make_options make_o;
  auto* const make_c =
      app.add_subcommand("make", "Writes a small model of random numbers in a family's published layout");
  make_c->add_option("folder", make_o.folder, "where to")->required();
  make_c->add_option("--family", make_o.family, family_list() + " (default olmoe)");
  make_c->add_option("--dtype", make_o.dtype, "float, double, bfloat16 or float16 (default bfloat16)");
  make_c->add_option("--layout", make_o.layout, "another layout of the family");
  shared::add_number<std::int64_t>(*make_c, "--layers", make_o.layers, 1, 1 << 16, "mixtures (default 2)");
  shared::add_number<std::int64_t>(*make_c, "--experts", make_o.experts, 1, 1 << 20, "experts a layer (default 8)");
  shared::add_number<std::int64_t>(*make_c, "--top-k", make_o.top_k, 1, 1 << 20, "experts a token (default 2)");
  shared::add_number<std::int64_t>(*make_c, "--width", make_o.inputs, 1, 1 << 24, "width of a token (default 64)");
  shared::add_number<std::int64_t>(*make_c, "--hidden", make_o.hidden, 1, 1 << 24,
                                   "hidden width of an expert (default 32)");
  shared::add_number<std::uint64_t>(*make_c, "--seed", make_o.seed, 0, ~std::uint64_t{0}, "of the numbers (default 1)");

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    throw shared::input_error(error.what());
  }
  if (*inspect_c) inspect(inspect_o);
  if (*run_c) run(run_o);
  if (*trace_c) trace(trace_o);
  if (*convert_c) convert(convert_o);
  if (*quantize_c) quantize(quantize_o);
  if (*make_c) make(make_o);
  const bool close_enough = !*compare_c || compare(compare_o);
  std::cout.flush();
  if (!std::cout) throw std::runtime_error("the output cannot be written");
  return close_enough ? ok : differs;
}

int complain(const char* message, int code) {
  std::string text(message);
  for (const char* const begin : {"sluice: ", "std::"})
    if (text.starts_with(begin)) text = text.substr(std::string_view(begin).size());
  std::cerr << "checkpoint: " << text << '\n';
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  catch_interrupts();
  try {
    return run_program(argc, argv);
  } catch (const checkpoint::interrupted& stop) {
    return complain(stop.what(), ended_by_signal + interrupt_flag);
  } catch (const shared::input_error& error) {
    return complain(error.what(), usage);
  } catch (const std::invalid_argument& error) {  // a number or a word that the library refuses
    return complain(error.what(), usage);
  } catch (const std::bad_alloc&) {
    return complain("out of memory", no_memory);
  } catch (const std::exception& error) {
    return complain(error.what(), bad_file);
  }
}
