#include "layer.hpp"

#include <sluice/core/variant.hpp>

#include "training_step.hpp"

namespace border {

// Not in an unnamed namespace: classes of one name in every variant are what has to be kept apart.
class moe final : public layer, public named {
public:
  explicit moe(int experts) : layer_(make_swiglu_layer(experts)) {}

  results training_step(std::ptrdiff_t tokens) override {
    return run_training_step(layer_, inputs(tokens * width, 4), inputs(tokens * width, 5));
  }
  void forward_with_wrong_shapes() override {
    sluice::matrix<float> y(4, width);  // memory by Eigen, which has another rule for every instruction set
    decltype(layer_)::workspace workspace;
    layer_.forward(sluice::matrix<float>::Ones(5, width), y, workspace);
  }
  void fail() override { throw failure(42); }
  int count() override { return ++counter(); }
  std::string isa() const override { return SLUICE_ISA_NAME; }

private:
  swiglu_layer layer_;
};

}  // namespace border

std::unique_ptr<border::layer> SLUICE_VARIANT_ENTRY(make_layer)(int experts) {
  return std::make_unique<border::moe>(experts);
}
