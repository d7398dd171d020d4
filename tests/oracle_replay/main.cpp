// oracle_replay: runs published layers on stored inputs and compares every stored result.
//
//   oracle_replay [--allow-unsupported] FILE_OR_FOLDER...
//
// Every case runs in float and in double and has to pass in both. One line a case:
//   system/case PASS|FAIL|UNSUPPORTED max_error=... bound=...     the comparison in float that came closest to its bound, or the
//                                                                 one in double if only that failed
// Exit code 0: every case passed; 1: a FAIL, or an UNSUPPORTED that was not allowed; 2: wrong arguments or no cases.
#include "replays.hpp"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <iostream>

namespace {

namespace fs = std::filesystem;
using namespace oracle;

enum class verdict { pass, fail, unsupported };

std::vector<replayer> all_replayers() {
  std::vector<replayer> all;
  for (const auto& some : {
           softmax_blocks(),
           decoder_blocks(),
           attention_mixtures(),
           switch_heads(),
           vision_routers(),
           token_choice(),
           soft_routers(),
           selectors(),
           probes(),
           tasks(),
           branches(),
           factorized_experts(),
           sub_tokens(),
           stacks(),
           union_of_experts(),
           multilinear_mixtures(),
           derived_experts(),
           shift_experts(),
           dense_gates(),
           memory_layers(),
           thresholds(),
           contrast(),
           nested_experts(),
           patches(),
           per_sample(),
           adapters(),
           merged_experts(),
           slot_adapters(),
           images(),
           encoders(),
           fixed_routers(),
           assigned_routers(),
           stable_routers(),
           clusters(),
           code_search_systems(),
           vector_codebooks(),
           code_readers(),
           residual_codebooks(),
           scalar_quantizers(),
           codebook_policies(),
           drawn_codes(),
           weight_quantizers(),
           vector_formats(),
           weight_codes(),
           conversions(),
           quantized_files(),
           block_formats(),
           statistical_mixtures(),
       })
    all.insert(all.end(), some.begin(), some.end());
  return all;
}

std::vector<fs::path> files_under(const std::vector<std::string>& paths) {
  std::vector<fs::path> files;
  for (const fs::path path : paths) {
    if (!fs::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    for (fs::recursive_directory_iterator entry(path), end; entry != end; ++entry) {
      fs::path case_of_folder = entry->path();
      case_of_folder += ".safetensors";
      if (entry->is_directory() && fs::exists(case_of_folder)) entry.disable_recursion_pending();  // what the case reads
      if (entry->is_regular_file() && entry->path().extension() == ".safetensors") files.push_back(entry->path());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

struct outcome {
  verdict v = verdict::pass;
  worst_entry worst;
  std::size_t compared = 0;
  std::string detail;
};

template <typename Scalar>
outcome run(const sluice::safetensors_reader& file, void (*replay)(oracle_case<Scalar>&)) {
  outcome o;
  oracle_case<Scalar> c(file);
  replay(c);
  o.worst = c.worst();
  o.compared = c.compared();
  const auto join = [](const std::vector<std::string>& names) {
    std::string text;
    for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
  };
  if (!c.failures().empty()) {
    o.v = verdict::fail;
    o.detail = (sizeof(Scalar) == 4 ? "float: " : "double: ") + join(c.failures());
  } else if (const auto missed = c.not_compared(); !missed.empty()) {
    o.v = verdict::unsupported;
    o.detail = "not compared: " + join(missed);
  }
  return o;
}

outcome replay_file(const fs::path& path, const std::vector<replayer>& replayers, std::string& name) {
  outcome o;
  try {
    const sluice::safetensors_reader file(path);
    const auto system = file.metadata().find("system");
    if (system == file.metadata().end() || !file.metadata().contains("config")) throw unsupported("no system or config in the metadata");
    name = system->second + '/' + path.stem().string();
    const auto found = std::find_if(replayers.begin(), replayers.end(), [&](const replayer& r) { return r.system == system->second; });
    if (found == replayers.end()) throw unsupported("no replay for this system");
    const outcome in_float = run<float>(file, found->in_float);
    const outcome in_double = run<double>(file, found->in_double);
    const auto rank = [](const outcome& a) { return a.v == verdict::fail ? 2 : a.v == verdict::unsupported ? 1 : 0; };
    o = rank(in_double) > rank(in_float) ? in_double : in_float;
  } catch (const unsupported& reason) {
    o.v = verdict::unsupported;
    o.detail = reason.what();
  } catch (const std::exception& error) {
    o.v = verdict::fail;
    o.detail = error.what();
  }
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Replays published mixture-of-experts cases and compares every stored result."};
  std::vector<std::string> paths;
  bool allow_unsupported = false;
  app.add_option("paths", paths, "files or folders of .safetensors cases")->required()->check(CLI::ExistingPath);
  app.add_flag("--allow-unsupported", allow_unsupported, "an UNSUPPORTED case is not an error");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }

  const auto replayers = all_replayers();
  int count[3] = {0, 0, 0};
  for (const fs::path& path : files_under(paths)) {
    std::string name = path.stem().string();
    const outcome o = replay_file(path, replayers, name);
    const char* const word = o.v == verdict::pass ? "PASS" : o.v == verdict::fail ? "FAIL" : "UNSUPPORTED";
    std::printf("%s %s max_error=%.3g bound=%.3g", name.c_str(), word, o.worst.error, o.worst.bound);
    if (!o.worst.tensor.empty()) std::printf(" at %s, %zu tensors", o.worst.tensor.c_str(), o.compared);
    if (!o.detail.empty()) std::printf(" (%s)", o.detail.c_str());
    std::printf("\n");
    ++count[static_cast<int>(o.v)];
  }
  std::printf("%d passed, %d failed, %d unsupported\n", count[0], count[1], count[2]);
  if (count[0] + count[1] + count[2] == 0) return 2;
  return count[1] > 0 || (count[2] > 0 && !allow_unsupported) ? 1 : 0;
}
