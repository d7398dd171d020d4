/// |change| / |whole|, added up from parts.
#pragma once

#include <cmath>

namespace checkpoint {

struct relative_error {
  double change = 0, whole = 0;  // sums of squares

  void add(const relative_error& part) { change += part.change, whole += part.whole; }
  double value() const { return whole > 0 ? std::sqrt(change / whole) : 0; }
};

}  // namespace checkpoint
