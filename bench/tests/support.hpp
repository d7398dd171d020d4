/// Catch2 2 or 3, and running the program.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <system_error>

#if !defined(_WIN32)
#include <sys/wait.h>
#endif

namespace bench::test {

/// A folder of its own for one test, removed with everything in it.
class temporary_folder {
public:
  temporary_folder()
      : path_(std::filesystem::temp_directory_path() / ("sluice_bench_" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directory(path_);
  }
  ~temporary_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;

  std::string file(const std::string& name) const { return (path_ / name).string(); }

private:
  std::filesystem::path path_;
};

inline std::string contents(const std::string& file) {
  std::ostringstream text;
  text << std::ifstream(file, std::ios::binary).rdbuf();
  return text.str();
}

struct outcome {
  int code;
  std::string out, error;
};

inline outcome run(const temporary_folder& folder, const std::string& arguments) {
#if !defined(_WIN32)
  setenv("OMP_WAIT_POLICY", "passive", 1);  // tests run side by side: spinning threads would take the others' time
#endif
  const std::string out = folder.file("stdout"), error = folder.file("stderr");
  const std::string command = "\"" BENCH_PROGRAM "\" " + arguments + " > \"" + out + "\" 2> \"" + error + "\"";
  int code = std::system(command.c_str());
#if !defined(_WIN32)
  code = WIFEXITED(code) ? WEXITSTATUS(code) : -1;
#endif
  return {code, contents(out), contents(error)};
}

}  // namespace bench::test
