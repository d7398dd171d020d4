/// The command line of the benchmark program.
#pragma once

#include <optional>
#include <ostream>
#include <stdexcept>
#include <string>

namespace bench {

/// Something that the user gave is wrong. main() prints the message as one line and exits with 2.
class input_error : public std::runtime_error {
public:
  using std::runtime_error::runtime_error;
};

struct options {
  std::string folder = "bench-report";
  std::string filter;  ///< only cases whose name contains it
  int threads = 0;     ///< after parsing: 1 or more
  bool quick = false;  ///< fewer tokens counts and repetitions
  bool smoke = false;  ///< proves that the report is written; its numbers mean nothing
  bool quiet = false;
};

/// Returns nothing when help was asked for (and written to `out`); throws input_error when a value is wrong.
std::optional<options> parse_options(int argc, const char* const* argv, std::ostream& out);

}  // namespace bench
