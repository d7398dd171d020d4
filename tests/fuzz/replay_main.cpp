// Feeds files, and all files of folders, to a fuzz target once each: the seed corpus as a test, and a crash found by a
// fuzzer again, with any compiler. Fails if there is nothing to replay.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

std::vector<std::filesystem::path> files_in(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) return {path};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

bool replay(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    std::fprintf(stderr, "cannot open %s\n", path.string().c_str());
    return false;
  }
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  // Of exactly this size, so that a read beyond the end is one beyond the allocation. Names come before the run: if the
  // target crashes, the last name is the culprit.
  const std::vector<std::uint8_t> bytes(text.begin(), text.end());
  std::printf("%s (%zu bytes)\n", path.string().c_str(), bytes.size());
  std::fflush(stdout);
  try {
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    return true;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "  escaped exception: %s\n", error.what());
    return false;
  }
}

}  // namespace

int main(int count, char** arguments) {
  std::size_t replayed = 0;
  std::size_t failed = 0;
  try {
    for (int i = 1; i < count; ++i)
      for (const std::filesystem::path& path : files_in(arguments[i])) {
        ++replayed;
        if (!replay(path)) ++failed;
      }
  } catch (const std::filesystem::filesystem_error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  std::printf("%zu files replayed, %zu failed\n", replayed, failed);
  return replayed == 0 || failed > 0 ? 1 : 0;
}
