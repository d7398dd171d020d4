// Layers over images: AdvMoE's convolution.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/layer/images/chosen_channels.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- AdvMoE ----------------------------------------------------------------------------------------------------------

/// An image a row: the files have [B,C,H,W].
template <typename Scalar>
matrix<Scalar> images_of(const oracle_case<Scalar>& c, const std::string& tensor) {
  const std::vector<Scalar> numbers = c.numbers(tensor);
  const index_t count = c.axis(tensor, 0);
  return const_matrix_map<Scalar>(numbers.data(), count, static_cast<index_t>(numbers.size()) / count);
}

template <typename Scalar>
void advmoe_conv(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E");
  const image_shape image{c.axis("x", 1), c.axis("x", 2), c.axis("x", 3)};
  chosen_channels_layer<Scalar> layer(
      image, E, c.template setting<index_t>("out_channels"),
      window_shape::square(c.template setting<index_t>("kernel"), c.template setting<index_t>("stride"),
                           c.template setting<index_t>("padding")));
  bindings<Scalar> bound;
  for (index_t e = 0; e < E; ++e)
    bound.bind("weight", layer.bank().expert(e).weight(), e * layer.bank().expert(e).weight().size());
  bound.load(c);
  const matrix<Scalar> x = images_of(c, "x"), dy = images_of(c, "grad_out"), scores = c.rows("scores");
  matrix<Scalar> y(x.rows(), layer.outputs()), dx(x.rows(), x.cols());
  routing_context<Scalar> context;
  context.training = true;
  context.features = scores;
  typename chosen_channels_layer<Scalar>::tape tape;
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  c.check("y", y);
  c.check("grad.x", dx);
  c.check("grad.scores", copy(tape.router.gate.features_gradient()));
  c.check_integers("indices", tape.router.choices.expert.span());
  bound.check_gradients(c, "grad");
}

}  // namespace

std::vector<replayer> images() { return {{"advmoe_conv", advmoe_conv<float>, advmoe_conv<double>}}; }

}  // namespace oracle
