// make_corpus NAME FOLDER           writes the seeds of the fuzz target NAME, drawn or the cases of tests, into FOLDER
// make_corpus --check NAME FOLDER   fails if FOLDER holds anything else
#include "../io/file_cases.hpp"
#include "../io/gguf_cases.hpp"
#include "../io/index_cases.hpp"
#include "drawn_cases.hpp"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace {

using file_map = std::map<std::string, std::string>;  // name to content

file_map files_of(const std::string& ending, const std::vector<std::vector<file_cases::file_case>>& cases) {
  file_map files;
  for (const auto& list : cases)
    for (const auto& c : list) files[c.name + ending] = c.bytes;
  return files;
}

/// Of kernels, besides: one output of 514 inputs, whose sum goes on behind the part of a row that is multiplied at once.
file_map kernel_cases() {
  file_map files = sluice::test::drawn_cases(14, 3, 60);
  for (const int storage : {4, 5, 6, 7})
    files["long_" + std::to_string(storage)] = std::string{static_cast<char>(storage), 0, 0, static_cast<char>(208), 4, 0, 0, 3};
  return files;
}

std::map<std::string, file_map> corpora() {
  using namespace file_cases;
  return {{"safetensors", files_of(".safetensors", {valid_files(), malformed_files()})},
          {"gguf", files_of(".gguf", {valid_gguf_files(), malformed_gguf_files()})},
          {"index", files_of(".json", {valid_indices(), malformed_indices()})},
          {"encoding", sluice::test::drawn_cases(10, 6, 48)},
          {"kernels", kernel_cases()},
          {"routing", sluice::test::drawn_cases(22, 5, 180)}};
}

std::string content(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

int check(file_map expected, const std::filesystem::path& folder) {
  int differences = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const auto file = expected.find(entry.path().filename().string());
    if (file == expected.end() || content(entry.path()) != file->second) {
      std::printf("differs: %s\n", entry.path().filename().string().c_str());
      ++differences;
    }
    if (file != expected.end()) expected.erase(file);
  }
  for (const auto& [name, bytes] : expected) {
    std::printf("missing: %s\n", name.c_str());
    ++differences;
  }
  return differences == 0 ? 0 : 1;
}

int write(const file_map& files, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  for (const auto& [name, bytes] : files) {
    std::ofstream out(folder / name, std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    out.close();
    if (!out) {
      std::printf("cannot write %s\n", name.c_str());
      return 1;
    }
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> words(arguments + 1, arguments + count);
  const bool checking = !words.empty() && words.front() == "--check";
  try {
    const std::map<std::string, file_map> known = corpora();
    if (words.size() == (checking ? 3U : 2U))
      if (const auto found = known.find(words[words.size() - 2]); found != known.end())
        return checking ? check(found->second, words.back()) : write(found->second, words.back());
  } catch (const std::filesystem::filesystem_error& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  std::printf("usage: make_corpus [--check] NAME FOLDER, where NAME is a fuzz target\n");
  return 2;
}
