// The report of a smoke run: its files are there and are what they say, whatever the numbers.
#include <cstdlib>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "support.hpp"

using namespace bench::test;

namespace {

std::vector<std::vector<std::string>> read_csv(const std::string& text) {
  std::vector<std::vector<std::string>> rows;
  std::istringstream lines(text);
  for (std::string line, field; std::getline(lines, line);) {
    rows.emplace_back();
    for (std::istringstream fields(line); std::getline(fields, field, ',');) rows.back().push_back(field);
  }
  return rows;
}

std::size_t occurrences(std::string_view text, std::string_view part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

/// The first thing that keeps `text` from being well-formed XML (of the kind that programs write), or nothing.
std::string xml_fault(std::string_view text) {
  std::vector<std::string> open;
  bool had_root = false;
  while (true) {
    const std::size_t tag = text.find('<');
    const std::string_view words = text.substr(0, tag);
    if (open.empty() && words.find_first_not_of(" \n") != std::string_view::npos) return "text outside of the root";
    for (std::size_t at = words.find('&'); at != std::string_view::npos; at = words.find('&', at + 1))
      if (words.substr(at, words.find(';', at) - at).size() > 6) return "a bare &";
    if (tag == std::string_view::npos) break;
    const std::size_t end = text.find('>', tag);
    if (end == std::string_view::npos) return "a tag without end";
    const std::string_view inside = text.substr(tag + 1, end - tag - 1);
    text.remove_prefix(end + 1);
    if (inside.starts_with('?')) continue;
    if (inside.find('<') != std::string_view::npos) return "< inside of a tag";
    const std::string name(inside.substr(0, inside.find_first_of(" /", 1)));
    if (inside.starts_with('/')) {
      if (open.empty() || "/" + open.back() != inside) return "unexpected " + std::string(inside);
      open.pop_back();
      continue;
    }
    if (open.empty() && had_root) return "a second root";
    had_root = true;
    std::set<std::string> attributes;
    for (std::string_view rest = inside.substr(name.size()); rest.find('=') != std::string_view::npos;) {
      const std::size_t equals = rest.find("=\""), close = rest.find('"', equals + 2);
      if (equals == std::string_view::npos || close == std::string_view::npos) return "an attribute without quotes";
      if (!attributes.insert(std::string(rest.substr(0, equals))).second)
        return "an attribute twice in " + std::string(inside);
      rest.remove_prefix(close + 1);
    }
    if (!inside.ends_with('/')) open.push_back(name);
  }
  return !open.empty() ? "unclosed " + open.back() : had_root ? "" : "no root";
}

}  // namespace

TEST_CASE("bench: the check for well-formed XML sees faults", "[bench]") {
  CHECK(xml_fault("<?xml version=\"1.0\"?>\n<a x=\"1\"><b/>text &lt;</a>\n") == "");
  CHECK(xml_fault("<a><b></a>") != "");
  CHECK(xml_fault("<a>") != "");
  CHECK(xml_fault("<a/><b/>") != "");
  CHECK(xml_fault("<a>x & y, and so on</a>") != "");
  CHECK(xml_fault("<a x=\"1\" x=\"2\"/>") != "");
  CHECK(xml_fault("") != "");
}

TEST_CASE("bench: a smoke run writes its report", "[bench][program]") {
  const temporary_folder folder;
  const outcome o = run(folder, "--smoke --threads 2 --out \"" + folder.file("deep/report") + "\"");
  INFO(o.error);
  REQUIRE(o.code == 0);
  CHECK(o.out.find("report.md") != std::string::npos);

  const std::string text = contents(folder.file("deep/report/report.csv"));
  const std::string header =
      "case,tokens,routing,dtype,implementation,threads,median_ms,gflops,gbytes_per_s,roofline_fraction\n";
  REQUIRE(text.starts_with(header));
  const auto rows = read_csv(text);
  std::set<std::string> cases, routings, implementations, keys;
  for (std::size_t r = 1; r < rows.size(); ++r) {
    REQUIRE(rows[r].size() == 10);
    cases.insert(rows[r][0]);
    routings.insert(rows[r][2]);
    implementations.insert(rows[r][4]);
    CHECK(keys.insert(rows[r][0] + "," + rows[r][1] + "," + rows[r][2] + "," + rows[r][3] + "," + rows[r][4] + "," +
                      rows[r][5])
              .second);
    for (const std::size_t c : {1, 5, 6, 7, 8, 9}) {
      char* end = nullptr;
      CHECK(std::strtod(rows[r][c].c_str(), &end) >= 0);
      CHECK(*end == '\0');
    }
  }
  for (const char* name :
       {"tiny", "tiny_training", "growth_T", "growth_E=2", "growth_K=2", "growth_N=16", "other_merged",
        "other_convolution", "other_selective_attention", "other_cross_attention"})
    CHECK(cases.count(name) == 1);
  CHECK(routings == std::set<std::string>{"uniform", "uniform_planned", "zipf_planned"});
  for (const char* name : {"sluice", "naive", "eigen", "dense"}) CHECK(implementations.count(name) == 1);

  const std::string report = contents(folder.file("deep/report/report.md"));
  for (const char* heading : {"# sluice: benchmark report", "measured limit", "## How to read this", "## Forward pass",
                              "## Even and uneven routing", "## Training step", "## Other layers", "## Growth", "## What is not experts",
                              "## Routers alone", "## Codebooks", "## Making codes of weights", "## Attention",
                              "## Handing out tasks", "## Sizes, round and odd", "## One thread and", "## Memory", "## Every case"})
    CHECK(report.find(heading) != std::string::npos);
  CHECK(report.find("nan") == std::string::npos);
  CHECK(report.find("-nan") == std::string::npos);

  const std::string svg = contents(folder.file("deep/report/roofline.svg"));
  CHECK(svg.starts_with("<?xml"));
  CHECK(svg.find("<svg ") != std::string::npos);
  CHECK(xml_fault(svg) == "");
  const std::string storages = contents(folder.file("deep/report/storages.svg"));
  CHECK(xml_fault(storages) == "");
  CHECK(occurrences(storages, "MXFP4") >= 2);
  const std::string sweep = contents(folder.file("deep/report/sweep.svg"));
  CHECK(xml_fault(sweep) == "");
  CHECK(occurrences(sweep, "<rect") == 1 + 4);  // a background and four shapes
  // Every panel, which ends in the word tokens, has each count on its axis once. (A share of 1 % is drawn in colour.)
  CHECK(occurrences(svg, ">tokens</text>") > 0);
  CHECK(occurrences(svg, "\"middle\">1</text>") == occurrences(svg, ">tokens</text>"));
}

TEST_CASE("bench: a filter that fits nothing still gives a report", "[bench][program]") {
  const temporary_folder folder;
  const outcome o = run(folder, "--smoke --quiet --threads 1 --filter nothing --out \"" + folder.file("report") + "\"");
  CHECK(o.code == 0);
  CHECK(o.error == "");
  CHECK(read_csv(contents(folder.file("report/report.csv"))).size() == 1);
  CHECK(xml_fault(contents(folder.file("report/roofline.svg"))) == "");
  CHECK(xml_fault(contents(folder.file("report/sweep.svg"))) == "");
  CHECK(xml_fault(contents(folder.file("report/storages.svg"))) == "");
}

TEST_CASE("bench: wrong values are explained in one line, with exit code 2", "[bench][program]") {
  const temporary_folder folder;
  const std::string file = folder.file("a file");
  std::ofstream(file) << "x";
  for (const std::string& arguments : {std::string("--threads 0"), std::string("--nope"), std::string("stray"),
                                       "--out \"" + file + "/below\"", std::string("--out \"\"")}) {
    CAPTURE(arguments);
    const outcome o = run(folder, "--smoke " + arguments);
    CHECK(o.code == 2);
    CHECK(o.out == "");
    CHECK(o.error.starts_with("sluice_bench: "));
  }
  CHECK(run(folder, "--help").out.find("--filter") != std::string::npos);
}
