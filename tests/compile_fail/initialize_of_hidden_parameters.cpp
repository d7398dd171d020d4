// expect: sluice: visit_parameters has to be a public `static void visit_parameters\(auto& self, auto&& visit\)`
#include <sluice/expert/ffn.hpp>
#include <sluice/train/initialize.hpp>

class my_model {
  static void visit_parameters(auto& self, auto&& visit) { visit("ffn", self.ffn_); }
  sluice::ffn<float> ffn_{4, 3};
};

void use(my_model& model) { sluice::initialize(model, 1); }
