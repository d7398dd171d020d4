/// Catch2 2 or 3, and what the tests of several examples need.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#if !defined(_WIN32)
#include <sys/wait.h>
#endif

#include "error.hpp"

namespace shared::testing {

/// A folder of its own for one test, removed with everything in it.
class temporary_folder {
public:
  explicit temporary_folder(const std::string& name)
      : path_(std::filesystem::temp_directory_path() /
              ("sluice_" + name + "_" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directory(path_);
  }
  ~temporary_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;

  std::string file(const std::string& name) const { return (path_ / name).string(); }

  std::string file_with(const std::string& name, const std::string& text) const {
    std::ofstream(file(name), std::ios::binary) << text;
    return file(name);
  }

  std::size_t entries() const {
    std::size_t n = 0;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) n += !entry.path().empty();
    return n;
  }

private:
  std::filesystem::path path_;
};

inline std::string contents(const std::string& file) {
  std::ostringstream text;
  text << std::ifstream(file, std::ios::binary).rdbuf();
  return text.str();
}

/// The message of the error that `call` throws; "(nothing was thrown)" if it throws none.
template <typename Error = input_error, typename Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "(nothing was thrown)";
}

/// Empty if `xml` is well-formed as far as our pictures need it (elements, attributes, entities); else what is wrong.
inline std::string xml_fault(std::string_view xml) {
  if (!xml.starts_with("<?xml ")) return "no declaration";
  xml.remove_prefix(xml.find("?>") + 2);
  std::vector<std::string> open;
  int roots = 0;
  while (!xml.empty()) {
    const std::size_t mark = std::min(xml.find('<'), xml.size());
    for (std::size_t i = 0; i < mark; ++i) {
      if (open.empty() && !std::isspace(static_cast<unsigned char>(xml[i]))) return "text outside the root";
      if (xml[i] != '&') continue;
      const std::string_view name = xml.substr(i, std::min(mark, xml.find(';', i)) - i);
      if (name != "&amp" && name != "&lt" && name != "&gt" && name != "&quot") return "bad entity " + std::string(name);
    }
    xml.remove_prefix(mark);
    if (xml.empty()) break;
    std::size_t end = 1;
    for (bool quoted = false; quoted || xml[end] != '>'; ++end) {
      if (end + 1 >= xml.size()) return "tag without end";
      if (xml[end] == '"') quoted = !quoted;
      if (xml[end] == '<') return "< inside a tag";
    }
    std::string_view tag = xml.substr(1, end - 1);
    xml.remove_prefix(end + 1);
    if (tag.starts_with('/')) {
      if (open.empty() || open.back() != tag.substr(1)) return "unexpected end " + std::string(tag);
      open.pop_back();
      continue;
    }
    const bool closed = tag.ends_with('/');
    if (closed) tag.remove_suffix(1);
    const std::string name(tag.substr(0, tag.find(' ')));
    if (open.empty() && ++roots > 1) return "two roots";
    tag.remove_prefix(name.size());
    std::vector<std::string> attributes;
    while (!tag.empty()) {
      if (tag[0] != ' ') return "no space before an attribute of " + name;
      const std::size_t equals = tag.find("=\"");
      if (equals == std::string_view::npos) return "attribute of " + name + " without a value";
      attributes.emplace_back(tag.substr(1, equals - 1));
      if (std::count(attributes.begin(), attributes.end(), attributes.back()) > 1) return "double attribute in " + name;
      tag.remove_prefix(tag.find('"', equals + 2) + 1);
    }
    if (!closed) open.push_back(name);
  }
  return open.empty() && roots == 1 ? "" : "elements left open";
}

/// What a program left behind.
struct outcome {
  int code;
  std::string out, error;
};

/// Runs a program as a user does.
inline outcome run_program(const std::string& program, const temporary_folder& folder, const std::string& arguments) {
  const std::string out = folder.file("stdout"), error = folder.file("stderr");
  const std::string command = "\"" + program + "\" " + arguments + " > \"" + out + "\" 2> \"" + error + "\"";
  int code = std::system(command.c_str());
#if !defined(_WIN32)
  code = WIFEXITED(code) ? WEXITSTATUS(code) : -1;
#endif
  return {code, contents(out), contents(error)};
}

}  // namespace shared::testing
