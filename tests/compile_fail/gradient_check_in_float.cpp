// expect: sluice: gradients are checked in double
#include <sluice/expert/ffn.hpp>
#include <sluice/train/gradient_check.hpp>

void use(sluice::ffn<float>& model) {
  sluice::check_gradients(model, {}, [] { return 1.0; });
}
