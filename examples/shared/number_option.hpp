/// Options of a command line that take a number.
#pragma once

#include <CLI/CLI.hpp>

#include <charconv>
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

}  // namespace shared
