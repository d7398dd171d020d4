// The program as a user runs it.
#include "shared/testing.hpp"

using shared::testing::run_program, shared::testing::temporary_folder;

TEST_CASE("multitask: errors of both tasks for every model, equal for any number of threads", "[multitask][program]") {
  const temporary_folder folder("multitask");
  const auto table_of = [&](const std::string& arguments) {
    const auto r = run_program(MULTITASK_PROGRAM, folder, arguments);
    INFO(r.error);
    REQUIRE(r.code == 0);
    CHECK(r.error.empty());
    CHECK(r.out.find("p99") != std::string::npos);
    CHECK(r.out.find("nan") == std::string::npos);
    return r.out.substr(0, r.out.find("p50"));
  };
  const std::string one = table_of("--quick --threads 1");
  for (const char* name : {"shared bottom, task 1", "MMoE, task 2", "MMoE-Ex, task 2", "\n0.9 ", "\n0.0 "})
    CHECK(one.find(name) != std::string::npos);
  CHECK(one == table_of("--quick --threads 3 --quiet"));
  CHECK(one != table_of("--quick --seed 2"));
}

TEST_CASE("multitask: what is wrong is said in a line", "[multitask][program]") {
  const temporary_folder folder("multitask_wrong");
  const auto r = run_program(MULTITASK_PROGRAM, folder, "--steps 1.5");
  CHECK(r.code == 2);
  CHECK(r.error.find("--steps needs a whole number from 1 to ") != std::string::npos);
  CHECK(r.error.find("'1.5'") != std::string::npos);
}
