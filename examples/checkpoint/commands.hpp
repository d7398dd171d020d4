/// The commands of the program and what each of them is told.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace checkpoint {

/// A model, and what its tensors have in front of "layers." where that is unusual.
struct model_options {
  std::string model, prefix;
};

/// What run and trace have in common: a model, which of its layers, the tokens that each of them gets.
struct layer_options : model_options {
  std::int64_t layer = -1;  // -1: every mixture
  bool decoder = false;     // of a model with an encoder, the layer of the decoder
  std::string input;        // empty: drawn from the seed
  std::int64_t tokens = 64;
  std::uint64_t seed = 1;
  std::string dtype = "float";
  std::vector<std::string> ignored;  // patterns of tensors that no layer needs to take
  int threads = 1;
  bool progress = false;
};

struct inspect_options : model_options {
  bool json = false;
};
struct run_options : layer_options {
  std::string output;
};
struct trace_options : layer_options {
  std::string csv, json, svg;
};
struct convert_options : model_options {
  std::string target, dtype, layout;
  std::uint64_t shard_bytes = 5'000'000'000;
  bool progress = false;
};
struct quantize_options : model_options {
  std::string target, format = "int4", svg;
  std::int64_t group = 32;
  std::string calibrate;             // tokens; empty: every weight is rounded on its own
  std::optional<double> budget;      // bits a weight over the experts of a layer, in the place of a format
  std::vector<std::string> ignored;  // patterns of tensors that no layer needs to take
  int threads = 1;
  bool progress = false;
};
struct compare_options {
  std::string a, b;
  double tolerance = -1;  // below 0: none, every difference is fine
};
struct make_options {
  std::string folder, family = "olmoe", dtype = "bfloat16", layout;
  std::int64_t layers = 2, experts = 8, top_k = 2, inputs = 64, hidden = 32;
  std::uint64_t seed = 1;
};

void inspect(const inspect_options&);
void run(const run_options&);
void trace(const trace_options&);
void convert(const convert_options&);
void quantize(const quantize_options&);
/// False if a difference exceeds the tolerance.
bool compare(const compare_options&);
void make(const make_options&);

}  // namespace checkpoint
