/// A matcher for parts of messages that is spelt the same with Catch2 2 and 3.
#pragma once

#include "support.hpp"

#include <string>

namespace sluice::test {

inline auto contains(const std::string& part) {
#if CATCH_VERSION_MAJOR >= 3
  return Catch::Matchers::ContainsSubstring(part);
#else
  return Catch::Matchers::Contains(part);
#endif
}

}  // namespace sluice::test
