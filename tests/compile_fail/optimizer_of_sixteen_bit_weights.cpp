// expect: sluice: the model has weights in a storage that is only read
#include <sluice/expert/ffn.hpp>
#include <sluice/train/adamw.hpp>

using namespace sluice;

void use(ffn<float, relu, bfloat16_storage>& model, adamw<float>& optimizer) { optimizer.step(model); }
