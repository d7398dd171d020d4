// What the program sees of the layer. Nothing here depends on an instruction set: numbers, pointers, std and virtual functions.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

class model {
public:
  static constexpr std::ptrdiff_t width = 64;

  virtual ~model() = default;
  virtual void forward(const float* x, float* y, std::ptrdiff_t tokens) = 0;  // both tokens x width, row by row
  virtual std::string configuration() const = 0;
};

using model_factory = std::unique_ptr<model>(unsigned seed);
