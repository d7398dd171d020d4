// expect: sluice: the optimiser is for another scalar than the model
#include <sluice/expert/ffn.hpp>
#include <sluice/train/sgd.hpp>

using namespace sluice;

void use(ffn<float>& model, sgd<double>& optimizer) { optimizer.step(model); }
