// What the variants offer and what crosses their border: a training step, exceptions, casts, a static object.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace border {

struct results {
  std::vector<float> y, dx;
  std::vector<std::vector<float>> gradients;  // of every parameter
};

class named {
public:
  virtual ~named() = default;
  virtual std::string isa() const = 0;
};

class layer {
public:
  virtual ~layer() = default;
  virtual results training_step(std::ptrdiff_t tokens) = 0;
  virtual void forward_with_wrong_shapes() = 0;  // std::invalid_argument, by sluice
  virtual void fail() = 0;                       // throws failure
  virtual int count() = 0;                       // ++counter() as the variant sees it
};

/// An exception of the program's own, defined in a header.
class failure : public std::runtime_error {
public:
  explicit failure(int n) : std::runtime_error("failure"), number(n) {}
  int number;
};

inline int& counter() {
  static int count = 0;
  return count;
}

}  // namespace border

using layer_factory = std::unique_ptr<border::layer>(int experts);
