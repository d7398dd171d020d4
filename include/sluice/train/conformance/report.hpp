/// What the conformance kit found: one line a property, passed, failed or skipped, and why.
#pragma once

#include <sluice/core/isa.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

enum class outcome { passed, failed, skipped };

struct property_result {
  std::string name;
  outcome result = outcome::passed;
  std::string detail;
};

struct conformance_report {
  std::vector<property_result> properties;

  /// True if no property failed.
  bool passed() const {
    return std::none_of(properties.begin(), properties.end(),
                        [](const auto& p) { return p.result == outcome::failed; });
  }

  /// The property of this name, or nullptr.
  const property_result* find(const std::string& name) const {
    const auto found =
        std::find_if(properties.begin(), properties.end(), [&](const auto& p) { return p.name == name; });
    return found == properties.end() ? nullptr : &*found;
  }

  /// One line a property: "failed   token permutation: token 3 ...".
  std::string describe() const {
    std::string text;
    for (const property_result& p : properties) {
      text += p.result == outcome::passed ? "passed   " : p.result == outcome::failed ? "FAILED   " : "skipped  ";
      text += p.name + ": " + p.detail + '\n';
    }
    return text;
  }

  /// Adds the property of this name; property() returns its outcome and detail. What it throws is a failure.
  template <typename Property>
  void add(const std::string& name, Property&& property) {
    property_result p;
#if defined(__cpp_exceptions)
    try {
      p = property();
    } catch (const std::exception& thrown) {
      p = {{}, outcome::failed, std::string("threw: ") + thrown.what()};
    }
#else
    p = property();
#endif
    p.name = name;
    properties.push_back(std::move(p));
  }
};

namespace detail {

inline property_result pass(std::string why) { return {{}, outcome::passed, std::move(why)}; }
inline property_result fail(std::string why) { return {{}, outcome::failed, std::move(why)}; }
inline property_result skip(std::string why) { return {{}, outcome::skipped, std::move(why)}; }

inline std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

/// Passes if the difference is within the bound.
inline property_result judge(const std::string& what, double difference, double bound) {
  const std::string text = what + " differ by " + short_number(difference) + ", bound " + short_number(bound);
  return difference <= bound ? pass(text) : fail(text);
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
