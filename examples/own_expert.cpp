// Experts of your own: one with a parameter, and a lambda, side by side in one layer with SwiGLU experts.
#include <sluice/sluice.hpp>

#include <iostream>

using namespace sluice;

// y = scale * tanh(x), a learned scale per column.
template <std::floating_point Scalar>
class tanh_expert {
public:
  using scalar = Scalar;
  explicit tanh_expert(index_t width) : scale_({width}, parameter_role::vector, initial_values::constant(1)) {}

  index_t inputs() const { return scale_.size(); }
  index_t outputs() const { return scale_.size(); }
  index_t saved_columns() const { return scale_.size(); }  // tanh(x), kept for backward

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar> saved) const {
    saved = x.array().tanh();
    y = saved.array().rowwise() * scale_.map().col(0).transpose().array();
  }
  void backward(tokens_in<Scalar>, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) {
    dx = (dy.array() * (1 - saved.array().square())).rowwise() * scale_.map().col(0).transpose().array();
    for (index_t r = 0; r < dy.rows(); ++r)
      for (index_t c = 0; c < dy.cols(); ++c) scale_.gradient()[static_cast<std::size_t>(c)] += dy(r, c) * saved(r, c);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("scale", self.scale_);
  }

private:
  parameter<Scalar> scale_;
};

static_assert(explain_differentiable_expert<tanh_expert<float>>());

int main() {
  const conformance_report report = check_expert(tanh_expert<double>(6));
  std::cout << report.describe() << '\n';

  // Four SwiGLU experts, one of the class above, and a lambda that halves its input.
  const auto half = make_expert<float>(6, 6, [](auto x, auto y) { y = x / 2; }, [](auto, auto dy, auto dx) { dx = dy / 2; });
  moe_layer layer{top_k_router<float>{6, 6, {.top_k = 2}},
                  expert_union{expert_bank<swiglu<float>>{4, 6, 12}, expert_bank<tanh_expert<float>>{1, 6}, expert_bank(1, half)}};
  initialize(layer, 7);

  const matrix<float> x = matrix<float>::Random(32, 6);
  matrix<float> y(32, 6), dx(32, 6);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  layer.backward(matrix<float>::Ones(32, 6), dx, tape);
  for (index_t e = 0; e < layer.experts(); ++e) std::cout << "expert " << e << ": " << tape.plan.load(e) << " tokens\n";
  return report.passed() ? 0 : 1;
}
