// A layer of every kind behind one type: what every layer promises is then tested, and compiled, once.
#pragma once

#include <sluice/core/context.hpp>

#include <memory>
#include <string>
#include <vector>

namespace sluice::test {

/// A layer in float, eight numbers in and out, with its own workspace and tape.
class any_layer {
public:
  static constexpr index_t width = 8;

  virtual ~any_layer() = default;
  /// The same layer with memory that has seen no call.
  virtual std::unique_ptr<any_layer> fresh() const = 0;

  virtual void infer(tokens_in<float> x, tokens_out<float> y, const routing_context<float>& context = {}) = 0;
  virtual void train(tokens_in<float> x, tokens_out<float> y, const routing_context<float>& context) = 0;
  virtual void backward(tokens_in<float> dy, tokens_out<float> dx) = 0;
  virtual void after_step() = 0;

  /// An inference call whose workspace is the tape.
  virtual void infer_on_tape(tokens_in<float> x, tokens_out<float> y) = 0;
  /// The tape is copied, moved into another place and back; with `lose`, what is left behind is kept instead.
  virtual void carry_tape(bool lose) = 0;
  /// backward of a copy of the layer, with this one's tape.
  virtual void backward_of_copy(tokens_in<float> dy, tokens_out<float> dx) = 0;

  virtual void reserve_workspace(index_t tokens, const routing_context<float>& context = {}) = 0;
  virtual void reserve_tape(index_t tokens, const routing_context<float>& context = {}) = 0;
  /// Calls in the counters of the tape.
  virtual index_t calls_counted() = 0;

  virtual void zero_gradients() = 0;
  virtual std::vector<float> gradients() const = 0;
  virtual std::vector<float> values() const = 0;
};

struct named_layer {
  std::string name;
  std::unique_ptr<any_layer> layer;
};
/// Otherwise nobody has set a parameter.
std::vector<named_layer> every_layer(bool initialized = true);

}  // namespace sluice::test
