// Runs the program as a user does.
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "../../shared/testing.hpp"

using namespace shared::testing;

namespace {

shared::testing::outcome run_study(const temporary_folder& folder, const std::string& arguments) {
  return run_program(ROUTER_STUDY_PROGRAM, folder, arguments);
}

std::string svg_of(const temporary_folder& folder) { return " --svg \"" + folder.file("study.svg") + "\""; }

}  // namespace

TEST_CASE("router_study: what is studied is in the table of routers", "[router_study][program]") {
  const temporary_folder folder("study_list");
  std::set<std::string> rows, studied;
  std::ifstream table(SLUICE_ROUTER_TABLE);
  std::string line;
  for (std::getline(table, line); std::getline(table, line);) rows.insert(line.substr(0, line.find(',')));
  std::istringstream names(run_study(folder, "--list").out);
  while (std::getline(names, line)) studied.insert(line);
  for (const auto& name : rows)
    if (studied.count(name) == 0) WARN(name << " is in routers.csv and not in examples/router_study");
  for (const auto& name : studied) {
    INFO(name << " is in examples/router_study and not in routers.csv");
    CHECK(rows.count(name) == 1);
  }
}

TEST_CASE("router_study: quick, some routers: a table, claims, a picture, equal numbers for any number of threads",
          "[router_study][program]") {
  const temporary_folder folder("study_quick");
  const std::string some = "--quick --seeds 2 --router soft_moe_router,relu_router,dense_softmax_router";
  const shared::testing::outcome one = run_study(folder, some + " --threads 1 --csv \"" + folder.file("a.csv") + "\"" + svg_of(folder));
  INFO(one.error);
  REQUIRE(one.code == 0);
  CHECK(one.out.find("relu_router") < one.out.find("soft_moe_router"));
  CHECK(one.out.find("ReMoE: sparsity reaches its target") != std::string::npos);
  CHECK(one.error.find("12/12") != std::string::npos);
  const std::string picture = contents(folder.file("study.svg"));
  CHECK(xml_fault(picture) == "");
  CHECK(picture.find("ReLU (ReMoE)") != std::string::npos);
  const shared::testing::outcome two =
      run_study(folder, some + " --threads 3 --quiet --csv \"" + folder.file("b.csv") + "\"" + svg_of(folder));
  REQUIRE(two.code == 0);
  CHECK(two.error == "");
  CHECK(contents(folder.file("a.csv")) == contents(folder.file("b.csv")));
}

TEST_CASE("router_study: wrong values are explained in one line, with exit code 2", "[router_study][program]") {
  const temporary_folder folder("study_wrong");
  const auto said = [&](const std::string& arguments, const std::string& what) {
    const shared::testing::outcome o = run_study(folder, arguments + svg_of(folder));
    INFO(arguments << ": " << o.error);
    CHECK(o.code == 2);
    CHECK(o.error.starts_with("router_study: "));
    CHECK(o.error.find(what) != std::string::npos);
    CHECK(std::count(o.error.begin(), o.error.end(), '\n') == 1);
  };
  said("--router nope", "unknown router 'nope'");
  said("--seeds 0", "--seeds needs a whole number");
  said("--quiet --bar", "contradict");
  said("--data \"" + folder.file("missing.csv") + "\"", "cannot open the file");
  CHECK(run_study(folder, "--help").out.find("--router") != std::string::npos);
}
