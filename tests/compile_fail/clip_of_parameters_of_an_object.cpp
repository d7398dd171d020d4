// expect: sluice: visit_parameters has to be a public `static void visit_parameters\(auto& self, auto&& visit\)`
#include <sluice/expert/ffn.hpp>
#include <sluice/train/clip.hpp>

struct my_model {
  void visit_parameters(auto&& visit) { visit("ffn", ffn); }
  sluice::ffn<float> ffn{4, 3};
};

void use(my_model& model) { sluice::clip_gradient_norm(model, 1); }
