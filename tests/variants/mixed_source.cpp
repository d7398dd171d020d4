// Compiled with several sets of flags and linked as it is. Of its symbols only the library's and this function are its own: Eigen's
// and the standard library's belong to whichever object the linker took them from.
#include <sluice/core/variant.hpp>

#include "training_step.hpp"

border::results SLUICE_VARIANT_ENTRY(training_step)(const std::vector<float>& x, const std::vector<float>& dy) {
  swiglu_layer layer = make_swiglu_layer(7);
  return run_training_step(layer, x, dy);
}
