// Runs the program as a user does: what it prints, writes and returns.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "support.hpp"

using namespace digits::test;

namespace {

outcome run(const temporary_folder& folder, const std::string& arguments) {
  return run_program(DIGITS_PROGRAM, folder, arguments);
}

std::string quote(const std::string& file) { return "\"" + file + "\""; }

std::vector<std::vector<std::string>> read_csv(const std::string& file) {
  std::vector<std::vector<std::string>> rows;
  std::istringstream lines(contents(file));
  for (std::string line, field; std::getline(lines, line);) {
    rows.emplace_back();
    for (std::istringstream fields(line); std::getline(fields, field, ',');) rows.back().push_back(field);
  }
  return rows;
}

/// Everything but the measured speed, column 5.
std::string without_speed(const std::string& file) {
  std::string text;
  for (const auto& row : read_csv(file))
    for (std::size_t c = 0; c < row.size(); ++c) text += c == 5 ? "" : row[c] + ",";
  return text;
}

}  // namespace

TEST_CASE("digits: wrong values are explained in one line, with exit code 2", "[digits][program]") {
  const temporary_folder folder("program");
  const std::string damaged = folder.file_with("damaged.csv", "1,2,3\n"), empty = folder.file_with("empty.csv", "");
  const std::string svg = " --svg " + quote(folder.file("x.svg"));
  struct wrong {
    std::string arguments, said;
  };
  const std::vector<wrong> wrongs = {{"--router nope", "unknown router 'nope'"},
                                     {"--epochs 0", "--epochs needs a whole number"},
                                     {"--seed x", "--seed needs a whole number"},
                                     {"--seeds -3", "--seeds needs a whole number"},
                                     {"--threads 1.5", "--threads needs a whole number"},
                                     {"--patch round", "--patch needs square or row"},
                                     {"--nope", "not expected"},
                                     {"stray", "not expected"},
                                     {"--epochs", "--epochs"},
                                     {"--data " + quote(folder.file("missing.csv")), "cannot open the file"},
                                     {"--data " + quote(damaged), "damaged.csv:1: the line ends after column 3 of 65"},
                                     {"--data " + quote(empty), "the file is empty"},
                                     {"--csv " + quote(folder.file("no/x.csv")), "x.csv: cannot write the file"},
                                     {"--svg " + quote(folder.file("no/x.svg")), "x.svg: cannot write the file"}};
  for (const wrong& w : wrongs) {
    CAPTURE(w.arguments);
    const bool has_svg = w.arguments.find("--svg") != std::string::npos;
    const outcome o = run(folder, w.arguments + (has_svg ? "" : svg));
    CHECK(o.code == 2);
    CHECK(o.out == "");
    CHECK(o.error.starts_with("digits: "));
    CHECK(o.error.find(w.said) != std::string::npos);
    CHECK(std::count(o.error.begin(), o.error.end(), '\n') == 1);
    CHECK_FALSE(std::filesystem::exists(folder.file("x.svg")));
  }
}

TEST_CASE("digits: --help", "[digits][program]") {
  const temporary_folder folder("program");
  const outcome o = run(folder, "--help");
  CHECK(o.code == 0);
  CHECK(o.error == "");
  CHECK(o.out.find("--router") != std::string::npos);
  CHECK(o.out.find("soft_moe") != std::string::npos);
}

TEST_CASE("digits: a short run writes its table, CSV and picture", "[digits][program]") {
  const temporary_folder folder("program");
  const std::string shape = GENERATE("square", "row");
  const outcome o = run(folder, "--epochs 1 --seeds 2 --router top_k,soft_moe --patch " + shape + " --svg " +
                                    quote(folder.file("a.svg")) + " --csv " + quote(folder.file("a.csv")));
  CHECK(o.code == 0);
  CHECK(o.out.find("test accuracy") != std::string::npos);
  CHECK(o.error.find("top_k, seed 2: test accuracy ") != std::string::npos);
  CHECK(std::count(o.error.begin(), o.error.end(), '\n') == 6);  // a line a training, three routers with two seeds
  const auto rows = read_csv(folder.file("a.csv"));
  REQUIRE(rows.size() == 4);
  CHECK(contents(folder.file("a.csv"))
            .starts_with("router,accuracy,experts_per_token,load_cv,dropped,tokens_per_s,"
                         "parameters,active_parameters\ndense,"));
  CHECK(rows[2][0] == "top_k");
  CHECK(rows[2][2] == "2");
  for (std::size_t r = 1; r < rows.size(); ++r) {
    REQUIRE(rows[r].size() == 8);
    for (std::size_t c = 1; c < 8; ++c) {
      char* end = nullptr;
      CHECK(std::strtod(rows[r][c].c_str(), &end) >= 0);
      CHECK(*end == '\0');
    }
    CHECK(std::stod(rows[r][7]) <= std::stod(rows[r][6]));  // active parameters are some of all
  }
  CHECK(contents(folder.file("a.svg")).starts_with("<?xml"));
  CHECK(contents(folder.file("a.svg")).find("Soft MoE") != std::string::npos);
}

TEST_CASE("digits: --quiet writes nothing to stderr, --bar a bar that is gone in the end", "[digits][program]") {
  const temporary_folder folder("program");
  const std::string rest = " --epochs 1 --router top_k --svg " + quote(folder.file("a.svg"));
  CHECK(run(folder, "--quiet" + rest).error == "");
  const std::string bar = run(folder, "--bar" + rest).error;
  CHECK(bar.find("[##########..........] dense  epoch 1/1") != std::string::npos);
  CHECK(bar.ends_with('\r'));
}

TEST_CASE("digits: a seed gives the same bits for any number of threads", "[digits][program]") {
#if !defined(_WIN32)
#endif
  const temporary_folder folder("program");
  const auto train = [&](const std::string& name, const std::string& how) {
    const outcome o =
        run(folder, "--quiet --epochs 1 --router top_k,gshard,moe_plus_plus,dynmoe,expert_choice,soft_moe,dselect_k " +
                        how + " --svg " + quote(folder.file(name + ".svg")) + " --csv " +
                        quote(folder.file(name + ".csv")));
    REQUIRE(o.code == 0);
  };
  train("1", "--threads 1 --seed 5");
  for (const std::string threads : {"2", "3", "8"}) {
    CAPTURE(threads);
    train(threads, "--seed 5 --threads " + threads);
    CHECK(without_speed(folder.file(threads + ".csv")) == without_speed(folder.file("1.csv")));
    CHECK(contents(folder.file(threads + ".svg")) == contents(folder.file("1.svg")));
  }
  train("other", "--threads 1 --seed 6");
  CHECK(contents(folder.file("other.svg")) != contents(folder.file("1.svg")));
}

#if DIGITS_FULL_TRAINING
TEST_CASE("digits: every router learns, none much worse than the dense baseline", "[digits][program][slow]") {
  const temporary_folder folder("program");
  // Half of what the demonstration takes is enough for this.
  const outcome o =
      run(folder, "--epochs 15 --svg " + quote(folder.file("a.svg")) + " --csv " + quote(folder.file("a.csv")));
  REQUIRE(o.code == 0);
  const auto rows = read_csv(folder.file("a.csv"));
  REQUIRE(rows.size() >= 13);
  const double dense = std::stod(rows[1][1]);
  double best = 0;
  for (std::size_t r = 2; r < rows.size(); ++r) {
    CAPTURE(rows[r][0]);
    const double accuracy = std::stod(rows[r][1]);
    best = std::max(best, accuracy);
    CHECK(accuracy >= 0.96);
    CHECK(accuracy >= dense - 0.015);
  }
  CHECK(best >= 0.975);
}
#endif
