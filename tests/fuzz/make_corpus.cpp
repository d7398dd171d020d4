// make_corpus FOLDER           writes the seed corpus of the safetensors fuzzer (tests/io/file_cases.hpp) into FOLDER
// make_corpus --check FOLDER   fails if FOLDER holds anything else
#include "../io/file_cases.hpp"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

namespace {

std::map<std::string, std::string> corpus() {
  std::map<std::string, std::string> files;
  for (const auto& c : file_cases::valid_files()) files[c.name + ".safetensors"] = c.bytes;
  for (const auto& c : file_cases::malformed_files()) files[c.name + ".safetensors"] = c.bytes;
  return files;
}

std::string content(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

int check(const std::filesystem::path& folder) {
  std::map<std::string, std::string> expected = corpus();
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

int write(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  for (const auto& [name, bytes] : corpus()) {
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
  try {
    if (count == 3 && std::string(arguments[1]) == "--check") return check(arguments[2]);
    if (count == 2) return write(arguments[1]);
  } catch (const std::filesystem::filesystem_error& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  std::printf("usage: make_corpus [--check] FOLDER\n");
  return 2;
}
