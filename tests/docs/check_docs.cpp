// Checks a Markdown document against the project: check_docs <root> <document relative to root>
//
// - every ```cpp block is found, but for white space, in a source or header under examples/ or tests/docs/snippets/, all of which are compiled;
// - every `cmake ... --preset NAME` names a preset of the right kind in CMakePresets.json;
// - every relative link leads to a file.
// Each complaint is a line "document:line: what"; the exit code is 1 if there was any.
#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

namespace fs = std::filesystem;

namespace {

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    std::cerr << "cannot read " << path.string() << '\n';
    std::exit(2);
  }
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// White space goes, except one blank between two words, so that "int x" and "intx" stay different.
std::string squeeze(std::string_view text) {
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
  std::string out;
  bool blank = false;
  for (const char c : text) {
    if (std::isspace(static_cast<unsigned char>(c)) != 0) {
      blank = true;
      continue;
    }
    if (blank && !out.empty() && is_word(out.back()) && is_word(c)) out += ' ';
    blank = false;
    out += c;
  }
  return out;
}

std::vector<std::string> compiled_sources(const fs::path& root) {
  std::vector<std::string> sources;
  for (const fs::path folder : {"examples", "tests/docs/snippets"}) {
    if (!fs::is_directory(root / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / folder))
      if (entry.path().extension() == ".cpp" || entry.path().extension() == ".hpp")
        sources.push_back(squeeze(read(entry.path())));
  }
  return sources;
}

bool has_preset(const nlohmann::json& presets, const std::string& kind, const std::string& name) {
  const auto list = presets.find(kind + "Presets");
  return list != presets.end() && std::any_of(list->begin(), list->end(), [&](const auto& preset) {
           return preset.at("name") == name && !preset.value("hidden", false);
         });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: check_docs <root> <document>\n";
    return 2;
  }
  const fs::path root = argv[1];
  const std::string document = argv[2];
  const auto sources = compiled_sources(root);
  const auto presets = nlohmann::json::parse(read(root / "CMakePresets.json"));

  int complaints = 0, blocks = 0;
  const auto complain = [&](int line, const std::string& what) {
    std::cout << document << ':' << line << ": " << what << '\n';
    ++complaints;
  };

  const std::regex preset_use(R"(\b(cmake|ctest)\b([^`\n]*)--preset[ =]([A-Za-z0-9_-]+))");
  const std::regex link(R"(\]\(([^)\s]+)\))");
  std::ifstream in(root / document);
  if (!in) {
    std::cout << document << " is missing\n";
    return 1;
  }
  std::string line, block;
  int number = 0, block_begin = 0;
  bool in_code = false, in_cpp = false;
  while (std::getline(in, line)) {
    ++number;
    const auto text = std::find_if_not(line.begin(), line.end(), [](unsigned char c) { return std::isspace(c) != 0; });
    if (std::string_view(text, line.end()).starts_with("```")) {
      if (in_cpp) {
        const std::string wanted = squeeze(block);
        ++blocks;
        if (std::none_of(sources.begin(), sources.end(),
                         [&](const std::string& source) { return source.find(wanted) != std::string::npos; }))
          complain(block_begin, "no compiled file holds this C++ block");
      }
      const std::string_view language = std::string_view(text, line.end()).substr(3);
      in_cpp = !in_code && (language.starts_with("cpp") || language.starts_with("c++"));
      in_code = !in_code;
      block.clear();
      block_begin = number;
      continue;
    }
    if (in_cpp) {
      block += line + '\n';
      continue;
    }
    for (std::sregex_iterator it(line.begin(), line.end(), preset_use), end; it != end; ++it) {
      const std::string tool = (*it)[1], options = (*it)[2], name = (*it)[3];
      const std::string kind = tool == "ctest"                                   ? "test"
                               : options.find("--workflow") != std::string::npos ? "workflow"
                               : options.find("--build") != std::string::npos    ? "build"
                                                                                 : "configure";
      if (!has_preset(presets, kind, name)) complain(number, "no " + kind + " preset '" + name + "'");
    }
    if (in_code) continue;
    for (std::sregex_iterator it(line.begin(), line.end(), link), end; it != end; ++it) {
      std::string target = (*it)[1];
      if (target.find("://") != std::string::npos || target.starts_with("mailto:") || target.starts_with('#')) continue;
      target.erase(std::min(target.find('#'), target.size()));
      if (!fs::exists((root / document).parent_path() / target)) complain(number, "broken link to " + target);
    }
  }
  if (in_code) complain(block_begin, "this code block does not end");
  std::cout << document << ": " << blocks << " C++ blocks, " << complaints << " complaints\n";
  return complaints == 0 ? 0 : 1;
}
