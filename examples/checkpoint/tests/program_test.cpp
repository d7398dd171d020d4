// The program as a user runs it: every command, every family, and every way to fail.
#include <sluice/core/random.hpp>
#include <sluice/io/safetensors.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <regex>

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>
#endif

#include "../../shared/testing.hpp"

using shared::testing::contents;
using shared::testing::outcome;
using shared::testing::temporary_folder;

namespace {

outcome run_tool(const temporary_folder& folder, const std::string& arguments) {
  return shared::testing::run_program(CHECKPOINT_PROGRAM, folder, arguments);
}

std::string quoted(const std::string& path) { return '"' + path + '"'; }

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// One line on stderr that begins with the program's name.
bool is_complaint(const outcome& o, int code, const std::string& part) {
  return o.code == code && o.error.starts_with("checkpoint: ") && holds(o.error, part);
}

/// Tokens [T,32] whose inputs depend on one another, as those of models do: the same ones for every name.
void save_dependent_tokens(const std::string& path, const std::vector<std::string>& names, int tokens, std::uint64_t seed) {
  constexpr int width = 32;
  const sluice::random_source draws(seed), mix(7);
  const sluice::random_site site("program_test.tokens");
  std::vector<float> x(static_cast<std::size_t>(tokens * width));
  for (int t = 0; t < tokens; ++t)
    for (int i = 0; i < width; ++i) {
      double sum = 0;
      for (int j = 0; j < width; ++j)  // four directions carry most of it
        sum += (j < 4 ? 0.5 : 0.05) * draws.normal(site, t * width + j) * mix.normal(site, j * width + i);
      x[static_cast<std::size_t>(t * width + i)] = static_cast<float>(sum);
    }
  sluice::safetensors_writer file;
  for (const std::string& name : names) file.add(name, {tokens, width}, x);
  file.save(path);
}

/// |b - a| / |a| over these tensors of two files.
double relative_change(const std::string& a, const std::string& b, const std::vector<std::string>& names) {
  double change = 0, whole = 0;
  for (const std::string& name : names) {
    const auto from = sluice::safetensors_reader(a).read_vector<float>(name),
               to = sluice::safetensors_reader(b).read_vector<float>(name);
    for (std::size_t i = 0; i < from.size(); ++i) {
      change += std::pow(double(to[i]) - double(from[i]), 2);
      whole += std::pow(double(from[i]), 2);
    }
  }
  return std::sqrt(change / whole);
}

}  // namespace

TEST_CASE("checkpoint: make, inspect, run, compare, trace, convert", "[checkpoint]") {
  const temporary_folder folder("checkpoint");
  const std::string model = quoted(folder.file("model")), file = folder.file("y.safetensors");
  REQUIRE(run_tool(folder, "make " + model + " --family qwen2_moe --experts 6 --layers 3").code == 0);

  const outcome shown = run_tool(folder, "inspect " + model);
  CHECK(shown.code == 0);
  CHECK(holds(shown.out, "qwen2_moe"));
  CHECK(holds(shown.out, "experts.{}.down_proj.weight"));
  const auto json = nlohmann::json::parse(run_tool(folder, "inspect --json " + model).out);
  CHECK(json.at("experts") == 6);
  CHECK(json.at("layers").size() == 3);
  // Router 6 x 64, shared expert 3 x 64 x 64 and its gate, two experts of 3 x 64 x 32.
  CHECK(json.at("layers").at(0).at("active_parameters_a_token") == 6 * 64 + 3 * 64 * 64 + 64 + 2 * 3 * 64 * 32);

  CHECK(run_tool(folder, "run " + model + " --tokens 20 --output " + quoted(file)).code == 0);
  const std::string other = folder.file("z.safetensors");
  CHECK(run_tool(folder, "run " + model + " --tokens 20 --threads 2 --output " + quoted(other)).code == 0);
  CHECK(contents(file) == contents(other));
  CHECK(sluice::safetensors_reader(file).at("layers.2.y").shape == std::vector<std::int64_t>{20, 64});
  CHECK(run_tool(folder, "compare --tolerance 0 " + quoted(file) + ' ' + quoted(other)).code == 0);
  // The weights are bfloat16's numbers: as float they are the same, as float16 they are not.
  CHECK(run_tool(folder, "run " + model + " --tokens 20 --dtype bfloat16 --output " + quoted(other)).code == 0);
  CHECK(contents(file) == contents(other));
  CHECK(run_tool(folder, "run " + model + " --tokens 20 --seed 2 --output " + quoted(other)).code == 0);
  CHECK(run_tool(folder, "compare --tolerance 0 " + quoted(file) + ' ' + quoted(other)).code == 1);
  CHECK(run_tool(folder, "compare " + quoted(file) + ' ' + quoted(other)).code == 0);
  CHECK(run_tool(folder, "run " + model + " --layer 1 --input " + quoted(file + ":layers.0.y")).code == 0);

  const std::string csv = folder.file("t.csv"), summary = folder.file("t.json"), svg = folder.file("t.svg");
  CHECK(run_tool(folder, "trace " + model + " --tokens 20 --csv " + quoted(csv) + " --json " + quoted(summary) +
                               " --svg " + quoted(svg))
            .code == 0);
  const std::string lines = contents(csv);
  CHECK(lines.starts_with("token,layer,rank,expert,weight\n0,layers.0,0,"));
  CHECK(std::count(lines.begin(), lines.end(), '\n') == 1 + 3 * 20 * 2);
  CHECK(nlohmann::json::parse(contents(summary)).at("layers").at(1).at("assignments") == 40);
  CHECK(shared::testing::xml_fault(contents(svg)).empty());

  const std::string converted = quoted(folder.file("converted"));
  CHECK(run_tool(folder, "convert " + model + ' ' + converted + " --dtype float --layout stacked --shard-bytes 60000")
            .code == 0);
  CHECK(std::filesystem::exists(folder.file("converted/model.safetensors.index.json")));
  CHECK(run_tool(folder, "run " + converted + " --tokens 20 --output " + quoted(other)).code == 0);
  CHECK(contents(file) == contents(other));
}

TEST_CASE("checkpoint: every family is made, inspected, run and traced", "[checkpoint]") {
  const temporary_folder folder("families");
  for (const std::string family : {"switch_transformers", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2",
                                   "deepseek_v3", "phimoe", "jetmoe", "gpt_oss", "llama4", "megatron", "qwen3_next",
                                   "deepseek_v4", "glm4_moe", "dots1", "gemma4", "granitemoe", "minimax_m2", "nemotron_h",
                                   "ernie4_5_moe", "hunyuan_v1_moe", "lfm2_moe", "longcat_flash", "jamba", "dbrx",
                                   "arctic"}) {
    CAPTURE(family);
    const std::string model = quoted(folder.file(family));
    const outcome made = run_tool(folder, "make " + model + " --family " + family);
    CAPTURE(made.error);
    CHECK(made.code == 0);
    CHECK(run_tool(folder, "inspect " + model).code == 0);
    CHECK(run_tool(folder, "run " + model + " --dtype bfloat16").code == 0);
    CHECK(run_tool(folder, "trace " + model).code == 0);
    if (family == "phimoe") continue;  // SparseMixer takes two
    const std::string single = quoted(folder.file(family + "_1"));
    const outcome one = run_tool(folder, "make " + single + " --top-k 1 --family " + family);
    CAPTURE(one.error);
    CHECK(one.code == 0);
    CHECK(run_tool(folder, "run " + single).code == 0);
  }
}

TEST_CASE("checkpoint: of a table of experts by token id, a token uses one row", "[checkpoint]") {
  const temporary_folder folder("table");
  const std::string model = quoted(folder.file("model"));
  REQUIRE(run_tool(folder, "make " + model + " --family deepseek_v4 --experts 6 --layers 2").code == 0);
  const auto layers = nlohmann::json::parse(run_tool(folder, "inspect --json " + model).out).at("layers");
  REQUIRE(layers.size() == 2);
  // Router 6 x 64, shared expert and two of the others of 3 x 64 x 32; then 2 of 1000 x 2 in the table, or 6 biases.
  const int both = 6 * 64 + (1 + 2) * 3 * 64 * 32;
  CHECK(layers.at(0).at("parameters") == both + 4 * 3 * 64 * 32 + 1000 * 2);
  CHECK(layers.at(0).at("active_parameters_a_token") == both + 2);
  CHECK(layers.at(1).at("active_parameters_a_token") == both + 6);
}

TEST_CASE("checkpoint: exit codes and messages", "[checkpoint]") {
  const temporary_folder folder("errors");
  const std::string model = quoted(folder.file("model"));
  REQUIRE(run_tool(folder, "make " + model).code == 0);
  CHECK(run_tool(folder, "--help").code == 0);
  CHECK(run_tool(folder, "run --help").code == 0);
  CHECK(is_complaint(run_tool(folder, ""), 2, ""));
  CHECK(is_complaint(run_tool(folder, "fly " + model), 2, ""));
  CHECK(is_complaint(run_tool(folder, "run " + model + " --dtype int4"), 2, "int4"));
  CHECK(is_complaint(run_tool(folder, "run " + model + " --tokens 1e3"), 2, "--tokens needs a whole number"));
  CHECK(is_complaint(run_tool(folder, "make " + quoted(folder.file("x")) + " --family gpt5"), 2,
                     "known are: switch_transformers"));
  CHECK(is_complaint(run_tool(folder, "convert " + model + ' ' + quoted(folder.file("x")) + " --layout sideways"), 2,
                     "sideways"));
  CHECK(is_complaint(run_tool(folder, "run " + model + " --layer 7"), 3,
                     "layers.7 is no mixture of experts; these are: layers.0, layers.1"));
  CHECK(is_complaint(run_tool(folder, "inspect " + quoted(folder.file("absent"))), 3, "absent"));
  CHECK(is_complaint(run_tool(folder, "run " + model + " --output " + quoted(folder.file("no/such/y.safetensors"))),
                     3, "y.safetensors"));

  const std::string weights = folder.file("model/model.safetensors");
  const std::string whole = contents(weights);
  folder.file_with("model/model.safetensors", whole.substr(0, whole.size() - 1));
  CHECK(is_complaint(run_tool(folder, "run " + model), 3, "model.safetensors"));
  CHECK(is_complaint(run_tool(folder, "convert " + model + ' ' + quoted(folder.file("x"))), 3, "model.safetensors"));
  CHECK_FALSE(std::filesystem::exists(folder.file("x")));
  folder.file_with("model/model.safetensors", whole);
  folder.file_with("model/config.json", "{\"model_type\": \"olmoe\"}");
  CHECK(is_complaint(run_tool(folder, "inspect " + model), 3, "config.json"));
}

TEST_CASE("checkpoint: strict about the layers it runs, and what it rounds, keeps or passes over is said",
          "[checkpoint]") {
  const temporary_folder folder("strict");
  const std::string model = quoted(folder.file("model")), out = quoted(folder.file("out"));
  REQUIRE(run_tool(folder, "make " + model + " --family deepseek_v3 --experts 4 --dtype float").code == 0);
  const outcome half = run_tool(folder, "run " + model + " --dtype float16");
  CHECK(half.code == 0);
  CHECK(holds(half.out, "values were rounded"));
  CHECK_FALSE(holds(run_tool(folder, "run " + model).out, "rounded"));
  const outcome converted = run_tool(folder, "convert " + model + ' ' + out + " --dtype bfloat16");
  CHECK(converted.code == 0);
  CHECK(holds(converted.out, "values were rounded, "));
  CHECK(holds(converted.out, "2 tensors of state kept the type they had"));
  CHECK(run_tool(folder, "trace " + out).code == 0);

  // The same with a tensor more in a block and a number that is beyond float16.
  const std::string path = folder.file("model/model.safetensors");
  const sluice::safetensors_reader whole(path);
  const std::string block = "model.layers.0.mlp.", expert = block + "experts.1.up_proj.weight";
  std::vector<float> values = whole.read_vector<float>(expert);
  values[3] = 1e6F;
  const std::vector<float> extra(3);
  sluice::safetensors_writer changed;
  for (const sluice::tensor_info& t : whole.tensors())
    if (t.name != expert) changed.add(t);
  changed.add(expert, whole.at(expert).shape, values);
  changed.add(block + "gate.temperature", {3}, extra);
  std::filesystem::create_directory(folder.file("more"));
  changed.save(folder.file("more/model.safetensors"));
  folder.file_with("more/config.json", contents(folder.file("model/config.json")));
  const std::string more = quoted(folder.file("more"));
  CHECK(is_complaint(run_tool(folder, "run " + more), 3, "left over \"" + block + "gate.temperature\""));
  const outcome ignoring = run_tool(folder, "run " + more + " --ignore 'x*' --ignore '*.gate.temp*'");
  CHECK(ignoring.code == 0);
  CHECK(holds(ignoring.out, "not taken: " + block + "gate.temperature"));
  CHECK(is_complaint(run_tool(folder, "trace " + more + " --ignore '*.temperature' --dtype float16"), 3,
                     "unfit \"" + expert + "\": 1 of "));
  CHECK(is_complaint(run_tool(folder, "convert " + more + ' ' + quoted(folder.file("x")) + " --dtype float16"), 3,
                     "unfit \"" + expert + "\": 1 of "));
  CHECK_FALSE(std::filesystem::exists(folder.file("x/model.safetensors")));
}

TEST_CASE("checkpoint: quantize rounds experts' weights, and what it writes is read by the other commands", "[checkpoint]") {
  const temporary_folder folder("quantize");
  const std::string model = quoted(folder.file("model")), y = folder.file("y"), z = folder.file("z");
  REQUIRE(run_tool(folder, "make " + model + " --family qwen2_moe --experts 4 --layers 2").code == 0);
  REQUIRE(run_tool(folder, "run " + model + " --tokens 20 --output " + quoted(y)).code == 0);
  // Rounding to b bits in steps of 2 m / (2^b - 1), m the largest of 32 normal numbers, about 2.1 of their
  // deviations: an error of a step / sqrt(12), which is 0.08 of the deviation in 4 bits and 0.0048 in 8.
  for (const auto& [format, bits, least, most] : {std::tuple{"int4", "4.50", 0.06, 0.11}, {"int8", "8.50", 0.003, 0.007}}) {
    const std::string target = quoted(folder.file(format));
    const outcome done = run_tool(folder, "quantize " + model + ' ' + target + " --format " + format + " --threads 2");
    REQUIRE(done.code == 0);
    const std::string row = done.out.substr(done.out.find("\nall"));
    std::istringstream words(row);
    std::string all, name, bits_a_weight;
    double error = 0;
    words >> all >> name >> bits_a_weight >> error;
    CHECK(name == format);
    CHECK(bits_a_weight == bits);
    CHECK(error > least);
    CHECK(error < most);
    CHECK(holds(done.out, "layers.1 expert 3"));
    CHECK(run_tool(folder, "inspect " + target).code == 0);
    CHECK(run_tool(folder, "run " + target + " --tokens 20 --output " + quoted(z)).code == 0);
    CHECK(run_tool(folder, "compare --tolerance 0 " + quoted(y) + ' ' + quoted(z)).code == 1);
    CHECK(run_tool(folder, "compare --tolerance 1 " + quoted(y) + ' ' + quoted(z)).code == 0);
    CHECK(is_complaint(run_tool(folder, "quantize " + target + ' ' + quoted(folder.file("twice"))), 3, "quantised already"));
  }
  CHECK(is_complaint(run_tool(folder, "quantize " + model + ' ' + quoted(folder.file("no")) + " --format int3"), 2, "int4 or int8"));
  const std::string stacked = quoted(folder.file("stacked"));
  REQUIRE(run_tool(folder, "convert " + model + ' ' + stacked + " --layout stacked").code == 0);
  CHECK(is_complaint(run_tool(folder, "quantize " + stacked + ' ' + quoted(folder.file("no"))), 3, "convert --layout per-expert first"));
  CHECK(!std::filesystem::exists(folder.file("no")));
}

TEST_CASE("checkpoint: quantize by calibration tokens loses less on others, and gives bits to who needs them", "[checkpoint]") {
  const temporary_folder folder("calibrate");
  const std::string model = quoted(folder.file("model")), y = folder.file("y");
  REQUIRE(run_tool(folder, "make " + model + " --family qwen2_moe --experts 4 --layers 2 --width 32 --hidden 16").code == 0);
  save_dependent_tokens(folder.file("seen.safetensors"), {"layers.0.x", "layers.1.x"}, 300, 1);
  save_dependent_tokens(folder.file("few.safetensors"), {"x"}, 5, 1);
  save_dependent_tokens(folder.file("others.safetensors"), {"x"}, 200, 2);
  const std::string input = " --input " + quoted(folder.file("others.safetensors")) + " --output ";
  const std::string seen = " --calibrate " + quoted(folder.file("seen.safetensors"));
  REQUIRE(run_tool(folder, "run " + model + input + quoted(y)).code == 0);
  const auto quantised = [&](const std::string& name, const std::string& options) {
    return run_tool(folder, "quantize " + model + ' ' + quoted(folder.file(name)) + options);
  };
  const auto error_on_others = [&](const std::string& name) {
    CHECK(run_tool(folder, "run " + quoted(folder.file(name)) + input + quoted(folder.file("z"))).code == 0);
    return relative_change(y, folder.file("z"), {"layers.0.y", "layers.1.y"});
  };
  REQUIRE(quantised("nearest", "").code == 0);
  const outcome done = quantised("gptq", seen + " --svg " + quoted(folder.file("q.svg")));
  REQUIRE(done.code == 0);
  CHECK(shared::testing::xml_fault(contents(folder.file("q.svg"))).empty());
  std::istringstream words(done.out.substr(done.out.find("\nall")));
  std::string all, format, bits;
  double weights = 0, nearest_weights = 0, outputs = 0, nearest_outputs = 0;
  words >> all >> format >> bits >> weights >> nearest_weights >> outputs >> nearest_outputs;
  CHECK(weights > nearest_weights);  // what it gives up for the outputs
  CHECK(outputs < 0.8 * nearest_outputs);
  CHECK(holds(done.out, "rounded by GPTQ on 300 tokens"));
  const double nearest = error_on_others("nearest"), compensated = error_on_others("gptq");
  CHECK(compensated < 0.9 * nearest);
  REQUIRE(quantised("threads", seen + " --threads 2").code == 0);
  CHECK(contents(folder.file("threads/model.safetensors")) == contents(folder.file("gptq/model.safetensors")));

  // Five tokens are too few for anybody: all is rounded to nearest, and said.
  const outcome few = quantised("few", " --calibrate " + quoted(folder.file("few.safetensors")));
  CHECK(holds(few.out, "layers.1: fewer than 16 tokens, so rounded to nearest: expert 0 1 2 3\n"));
  CHECK(contents(folder.file("few/model.safetensors")) == contents(folder.file("nearest/model.safetensors")));

  // With scales int4 takes 4.5 bits a weight, 5 in the last matrix, whose rows are half a group: 4.667 in the mean. int8
  // takes 4 more, which one expert of four can have.
  const outcome mixed = quantised("mixed", seen + " --budget 5.9");
  REQUIRE(mixed.code == 0);
  for (const std::string layer : {"layers.0 expert", "layers.1 expert"}) {
    std::istringstream lines(mixed.out);
    int eights = 0;
    for (std::string line; std::getline(lines, line);) eights += line.starts_with(layer) && holds(line, " int8 ");
    CHECK(eights == 1);
  }
  CHECK(error_on_others("mixed") < compensated);
  const auto config = nlohmann::json::parse(contents(folder.file("mixed/config.json"))).at("quantization_config");
  CHECK(config.at("config_groups").size() == 2);
  CHECK(config.at("config_groups").at("group_1").at("weights").at("num_bits") == 8);
  const std::string target = config.at("config_groups").at("group_1").at("targets").at(0);
  CHECK(std::regex_match(target, std::regex(R"(re:model\\\.layers\\\.0\\\.mlp\\\.experts\\\.\([0-3]\)\\\.\.\*)")));
  CHECK(holds(run_tool(folder, "inspect " + quoted(folder.file("mixed"))).out, "packed int4+packed int8"));

  CHECK(is_complaint(quantised("no", seen + " --budget 4"), 2, "--budget needs 4.667 bits a weight or more"));
  CHECK(is_complaint(quantised("no", seen + " --budget 0"), 2, "--budget needs 4.667 bits a weight or more"));
  CHECK(is_complaint(quantised("no", seen + " --budget 6 --format int4"), 2, "--format"));
  CHECK(is_complaint(quantised("no", " --budget 6"), 2, "--calibrate"));
  CHECK(is_complaint(quantised("no", " --calibrate " + quoted(folder.file("none.csv"))), 3, "none.csv"));
  const std::string stacked = quoted(folder.file("stacked")), gemma = quoted(folder.file("gemma"));
  REQUIRE(run_tool(folder, "make " + stacked + " --family gemma4 --width 32 --hidden 16").code == 0);
  REQUIRE(run_tool(folder, "convert " + stacked + ' ' + gemma + " --layout per-expert").code == 0);
  CHECK(is_complaint(run_tool(folder, "quantize " + gemma + ' ' + quoted(folder.file("no")) + seen), 3,
                     "read a norm or a projection of the tokens"));
  CHECK(!std::filesystem::exists(folder.file("no")));
}

TEST_CASE("checkpoint: the commands of the README, word by word", "[checkpoint]") {
  const temporary_folder folder("readme");
  std::istringstream readme(contents(CHECKPOINT_README));
  const std::string begin = "build/demo/examples/checkpoint ";
  std::size_t commands = 0;
  for (std::string line; std::getline(readme, line);) {
    if (!line.starts_with(begin)) continue;
    CAPTURE(line);
    ++commands;
    const std::string there = "cd " + quoted(folder.file("")) + " && " + quoted(CHECKPOINT_PROGRAM) + ' ' +
                              line.substr(begin.size()) + " > stdout 2>&1";
    CHECK(std::system(there.c_str()) == 0);
  }
  CHECK(commands >= 7);
  CHECK(std::filesystem::exists(folder.file("routing.svg")));
}

#if !defined(_WIN32)
TEST_CASE("checkpoint: Ctrl-C, and what else asks it to end, leave no half-written file", "[checkpoint]") {
  const temporary_folder folder("interrupt");
  const std::string model = folder.file("model"), out = folder.file("out");
  REQUIRE(
      run_tool(folder, "make " + quoted(model) + " --layers 2 --experts 32 --width 256 --hidden 256 --dtype float")
          .code == 0);
  for (const int signal : {SIGINT, SIGTERM}) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      ::alarm(60);
      (void)!::freopen("/dev/null", "w", stderr);
      ::execl(CHECKPOINT_PROGRAM, CHECKPOINT_PROGRAM, "convert", model.c_str(), out.c_str(), "--dtype", "double",
              static_cast<char*>(nullptr));
      ::_exit(127);
    }
    ::usleep(60'000);
    ::kill(child, signal);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {  // on a fast machine it may have finished
      std::filesystem::remove_all(out);
      continue;
    }
    const bool stopped = (WIFEXITED(status) && WEXITSTATUS(status) == 128 + signal) ||
                         (WIFSIGNALED(status) && WTERMSIG(status) == signal);
    CHECK(stopped);
    CHECK(!std::filesystem::exists(out));
  }
}
#endif
