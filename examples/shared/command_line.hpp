/// Command lines: options that take a number, and what is said of a wrong one.
#pragma once

#include <CLI/CLI.hpp>

#include <algorithm>
#include <charconv>
#include <ostream>
#include <string>
#include <system_error>

#include "error.hpp"

namespace shared {

/// A whole number in [least, most] and nothing else. CLI11's own conversion also takes "0x10" and lets "1e3" become 1.
template <typename Integer>
CLI::Option* add_number(CLI::App& app, const std::string& name, Integer& target, Integer least, Integer most,
                        const std::string& help) {
  const auto read = [=, &target](const std::string& text) {
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), target);
    if (status != std::errc() || end != text.data() + text.size() || target < least || target > most)
      throw input_error(name + " needs a whole number from " + std::to_string(least) + " to " + std::to_string(most) +
                        ", not " + in_quotes(text));
  };
  return app.add_option_function<std::string>(name, read, help)->type_name("N");
}

/// False if help was asked for, which is then written to `out`. Throws input_error, in one line, if something is wrong.
inline bool parse(CLI::App& app, int argc, const char* const* argv, std::ostream& out) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    out << app.help();
    return false;
  } catch (const CLI::ParseError& e) {
    std::string message = e.what();
    std::replace(message.begin(), message.end(), '\n', ' ');
    throw input_error(message + " (--help shows what is possible)");
  }
  return true;
}

}  // namespace shared
