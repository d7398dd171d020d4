// expect: sluice: a model needs a public `static void visit_parameters\(auto& self, auto&& visit\)` that calls visit
#include <sluice/expert/ffn.hpp>
#include <sluice/train/adamw.hpp>

struct my_model {
  sluice::ffn<float> ffn{4, 3};
};

void use(my_model& model, sluice::adamw<float>& optimizer) { optimizer.step(model); }
