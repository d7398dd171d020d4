/// Running the program.
#pragma once

#include <cstdlib>
#include <string>

#include "../../examples/shared/testing.hpp"

#if __has_include(<catch2/catch_all.hpp>)
using Catch::Approx;
#endif

namespace bench::test {

using shared::testing::contents;
using shared::testing::outcome;

struct temporary_folder : shared::testing::temporary_folder {
  temporary_folder() : shared::testing::temporary_folder("bench") {}
};

inline outcome run(const temporary_folder& folder, const std::string& arguments) {
#if !defined(_WIN32)
  setenv("OMP_WAIT_POLICY", "passive", 1);  // tests run side by side: spinning threads would take the others' time
#endif
  return shared::testing::run_program(BENCH_PROGRAM, folder, arguments);
}

}  // namespace bench::test
