// The program as a user runs it.
#include "../../shared/testing.hpp"

using shared::testing::contents, shared::testing::run_program, shared::testing::temporary_folder,
    shared::testing::xml_fault;

TEST_CASE("codebooks: every structure is trained, listed and drawn", "[codebooks][program]") {
  const temporary_folder folder("codebooks");
  const auto names = run_program(CODEBOOKS_PROGRAM, folder, "compress --list");
  REQUIRE(names.code == 0);
  const auto r =
      run_program(CODEBOOKS_PROGRAM, folder, "compress --quick --quiet --svg \"" + folder.file("all.svg") + "\"");
  INFO(r.error);
  REQUIRE(r.code == 0);
  CHECK(r.error.empty());
  std::istringstream lines(names.out);
  int count = 0;
  for (std::string name; std::getline(lines, name); ++count) CHECK(r.out.find(' ' + name + ' ') != std::string::npos);
  CHECK(count >= 4);
  CHECK(r.out.find("nan") == std::string::npos);
  CHECK(xml_fault(contents(folder.file("all.svg"))).empty());
}

TEST_CASE("codebooks: equal seeds give equal results, whatever the threads", "[codebooks][program]") {
  const temporary_folder folder("codebooks_threads");
  const auto picture_with = [&](const std::string& more) {
    const auto r = run_program(
        CODEBOOKS_PROGRAM, folder,
        "compress --quick --quiet --structure gradient,rotation --svg \"" + folder.file("p.svg") + "\" " + more);
    REQUIRE(r.code == 0);
    return contents(folder.file("p.svg"));
  };
  CHECK(picture_with("--threads 1") == picture_with("--threads 3"));
}

TEST_CASE("codebooks: an index is built and asked", "[codebooks][program]") {
  const temporary_folder folder("codebooks_search");
  std::string text;
  for (int i = 0; i < 600; ++i) {
    for (int d = 0; d < 8; ++d) text += (d > 0 ? "," : "") + std::to_string((i * (d + 3) * 7919) % 1000);
    text += '\n';
  }
  const auto file = folder.file_with("v.csv", text);
  const auto all = run_program(CODEBOOKS_PROGRAM, folder, "search \"" + file + "\" --parts 4 --rerank 540");
  INFO(all.error);
  REQUIRE(all.code == 0);
  CHECK(all.out.find("100.0 %") != std::string::npos);  // every vector is compared in the end
  const auto lists = run_program(CODEBOOKS_PROGRAM, folder, "search \"" + file + "\" --parts 4 --lists 8 --probes 8");
  REQUIRE(lists.code == 0);
  const auto wrong = run_program(CODEBOOKS_PROGRAM, folder, "search \"" + file + "\" --parts 3");
  CHECK(wrong.code == 2);
  CHECK(wrong.error.find("8") != std::string::npos);
}

TEST_CASE("codebooks: what is wrong is said in a line", "[codebooks][program]") {
  const temporary_folder folder("codebooks_wrong");
  const auto error_of = [&](const std::string& arguments) {
    const auto r = run_program(CODEBOOKS_PROGRAM, folder, arguments);
    CHECK(r.code == 2);
    CHECK(std::count(r.error.begin(), r.error.end(), '\n') == 1);
    return r.error;
  };
  CHECK(error_of("compress --structure absent").find("'absent'") != std::string::npos);
  CHECK(error_of("compress --epochs 0").find("--epochs needs a whole number from 1") != std::string::npos);
  CHECK(error_of("compress --input absent.csv").find("absent.csv: cannot open") != std::string::npos);
  CHECK(error_of("").find("--help") != std::string::npos);
}
