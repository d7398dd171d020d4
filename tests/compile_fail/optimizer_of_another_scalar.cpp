// expect: sluice: the optimiser is for another scalar than the model
#include <sluice/expert/ffn.hpp>
#include <sluice/train/adamw.hpp>

using namespace sluice;

void use(ffn<float>& model, adamw<double>& optimizer) { optimizer.step(model); }
