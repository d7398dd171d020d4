// The program as a user runs it.
#include "shared/testing.hpp"

using shared::testing::contents, shared::testing::run_program, shared::testing::temporary_folder,
    shared::testing::xml_fault;

namespace {

shared::testing::outcome run_language_model(const temporary_folder& folder, const std::string& arguments) {
  return run_program(LANGUAGE_MODEL_PROGRAM, folder, arguments);
}

std::string in_shell(const std::string& text) { return " \"" + text + "\" "; }

/// A text that says what comes next, three letters at a time.
std::string plain_text(const temporary_folder& folder) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "abc";
  return " --text" + in_shell(folder.file_with("text", text));
}

}  // namespace

TEST_CASE("language_model: every kind is trained, listed and drawn", "[language_model][program]") {
  const temporary_folder folder("lm_compare");
  const auto names = run_language_model(folder, "compare --list");
  REQUIRE(names.code == 0);
  const auto r = run_language_model(folder, "compare --quick --quiet --svg" + in_shell(folder.file("all.svg")) +
                                                "--csv" + in_shell(folder.file("all.csv")));
  INFO(r.error);
  REQUIRE(r.code == 0);
  CHECK(r.error.empty());
  CHECK(r.out.find("nan") == std::string::npos);
  const std::string picture = contents(folder.file("all.svg")), table = contents(folder.file("all.csv"));
  CHECK(xml_fault(picture).empty());
  CHECK(picture.find("nan") == std::string::npos);
  std::istringstream lines(names.out);
  int count = 0;
  for (std::string name; std::getline(lines, name); ++count) {
    INFO(name);
    CHECK(r.out.find(' ' + name + ' ') != std::string::npos);
    CHECK(table.find('\n' + name + ',') != std::string::npos);
  }
  CHECK(count >= 4);
  // Two blocks of width 64, each with q, k, v, o and three matrices of 192 hidden units, every one with a norm's gain;
  // the head has a bias and a norm. Attention looks at 16.5 of 32 bytes: 64 products a key for q k, 64 for the values.
  const int active = 2 * (4 * 64 * 64 + 64 + 3 * 64 * 192 + 64) + 64 * 256 + 256 + 64;
  CHECK(table.find("\ndense," + std::to_string(active + 256 * 64) + ',' + std::to_string(active) + ',' +
                   std::to_string(2 * active + 2 * 33 * 128) + ',') != std::string::npos);
}

TEST_CASE("language_model: equal seeds give equal numbers, whatever the threads", "[language_model][program]") {
  const temporary_folder folder("lm_threads");
  const auto table_with = [&](const std::string& more) {
    const auto r =
        run_language_model(folder, "compare --quick --quiet --kind dense,top_k --csv" + in_shell(folder.file("t.csv")) +
                                       "--svg" + in_shell(folder.file("t.svg")) + more);
    INFO(r.error);
    REQUIRE(r.code == 0);
    return contents(folder.file("t.csv"));
  };
  const std::string one = table_with("--threads 1");
  CHECK(one == table_with("--threads 3"));
  CHECK(one != table_with("--seed 2"));
}

TEST_CASE("language_model: a training that was stopped ends as if it had not been", "[language_model][program]") {
  const temporary_folder folder("lm_resume");
  const std::string whole = folder.file("whole"), parts = folder.file("parts");
  const auto text = plain_text(folder);
  const auto all = run_language_model(folder, "train --quick --quiet --kind top_k --model" + in_shell(whole) + text);
  INFO(all.error);
  REQUIRE(all.code == 0);
  auto part =
      run_language_model(folder, "train --quick --quiet --kind top_k --stop-after 3 --model" + in_shell(parts) + text);
  REQUIRE(part.code == 0);
  CHECK(part.out.empty());
  CHECK(part.error.find("stopped after step 3; go on by: language_model resume") != std::string::npos);
  CHECK(contents(parts) != contents(whole));
  part = run_language_model(folder, "resume --quiet --stop-after 1" + in_shell(parts) + text);
  REQUIRE(part.code == 0);
  part = run_language_model(folder, "resume --quiet --threads 3" + in_shell(parts) + text);
  INFO(part.error);
  REQUIRE(part.code == 0);
  CHECK(contents(parts) == contents(whole));  // parameters, moments, and the losses of every step
  CHECK(part.out.substr(part.out.find("\n\n")) == all.out.substr(all.out.find("\n\n")));

  const auto other =
      run_language_model(folder, "resume" + in_shell(parts) + "--text" + in_shell(LANGUAGE_MODEL_PROGRAM));
  CHECK(other.code == 2);
  CHECK(other.error.find("was trained on another text") != std::string::npos);
}

TEST_CASE("language_model: it learns, and writes what it learned", "[language_model][program]") {
  const temporary_folder folder("lm_learns");
  const std::string model = folder.file("m");
  const auto learned = run_language_model(
      folder, "train --quick --quiet --kind sigma_moe --steps 120 --model" + in_shell(model) + plain_text(folder));
  INFO(learned.error);
  REQUIRE(learned.code == 0);
  const auto bits = learned.out.find(" bits a byte");
  REQUIRE(bits != std::string::npos);
  CHECK(std::stod(learned.out.substr(bits - 5, 5)) < 0.2);
  const auto text_of = [&](const std::string& arguments) {
    const auto r = run_language_model(folder, "write" + in_shell(model) + arguments);
    INFO(r.error);
    REQUIRE(r.code == 0);
    return r.out;
  };
  CHECK(text_of("--prompt bcab --bytes 40 --temperature 0") ==
        "bcab"
        "cabcabcabcabcabcabcabcabcabcabcabcabcabc"
        "\n");
  CHECK(text_of("--bytes 60 --temperature 50 --seed 1") == text_of("--bytes 60 --temperature 50 --seed 1 --threads 1"));
  CHECK(text_of("--bytes 60 --temperature 50 --seed 1") != text_of("--bytes 60 --temperature 50 --seed 2"));
}

TEST_CASE("language_model: what is wrong is said in a line", "[language_model][program]") {
  const temporary_folder folder("lm_wrong");
  const auto error_of = [&](const std::string& arguments) {
    const auto r = run_language_model(folder, arguments);
    INFO(r.error);
    CHECK(r.code == 2);
    CHECK(std::count(r.error.begin(), r.error.end(), '\n') == 1);
    return r.error;
  };
  CHECK(error_of("train --kind absent").find("'absent'") != std::string::npos);
  CHECK(error_of("train --steps 0").find("--steps needs a whole number from 1") != std::string::npos);
  CHECK(error_of("train --rate 2").find("--rate needs a number from 0 to 1, not '2'") != std::string::npos);
  CHECK(error_of("train --width 72").find("multiple of 64") != std::string::npos);
  CHECK(error_of("train --text absent.txt").find("absent.txt: cannot open") != std::string::npos);
  CHECK(error_of("write").find("--help") != std::string::npos);
  const auto broken = run_language_model(folder, "write" + in_shell(folder.file_with("broken", "no model")));
  CHECK(broken.code != 0);
  CHECK(broken.error.find("broken") != std::string::npos);
}
