// Layers, routers, training and files as users write them: what compilers say about templates shows only once they are used.
#include <sluice/checkpoint/convert.hpp>
#include <sluice/checkpoint/published_layer.hpp>
#include <sluice/exec/openmp.hpp>
#include <sluice/io/model_file.hpp>
#include <sluice/sluice.hpp>

namespace {

using namespace sluice;

template <typename Layer>
void train(Layer layer) {
  initialize(layer, 1);
  const matrix<typename Layer::scalar> x = matrix<typename Layer::scalar>::Ones(5, layer.inputs());
  matrix<typename Layer::scalar> y(5, layer.outputs()), dx(5, layer.inputs());
  typename Layer::workspace workspace;
  typename Layer::tape tape;
  layer.forward(x, y, workspace);
  layer.forward(x, y, tape);
  layer.backward(y, dx, tape);
  clip_gradient_norm(layer, 1.0);
  adamw<typename Layer::scalar>{}.step(layer);
  sgd<typename Layer::scalar>{}.step(layer);
  layer.after_step(tape);
}

template <typename Scalar>
void use_everything() {
  using bank = expert_bank<swiglu<Scalar>>;
  const auto experts = [] { return bank{4, 8, 16}; };
  train(moe_layer{top_k_router<Scalar>{8, 4}, experts(), switch_balance{}, router_z_loss{}, entropy_loss{}, importance_loss{}});
  train(moe_layer{noisy_top_k_router<Scalar>{8, 4}, expert_bank<ffn<Scalar, gelu>>{4, 8, 16}, load_loss{}});
  train(moe_layer{learned_noise_top_k_router<Scalar>{8, 4}, experts()});
  train(moe_layer{switch_router<Scalar>{8, 4}, expert_bank<identity_expert<Scalar>>{4, 8}});
  train(moe_layer{gshard_router<Scalar>{8, 4}, expert_bank<constant_expert<Scalar>>{4, 8}});
  train(moe_layer{sigmoid_router<Scalar>{8, 4, {}}, experts()});
  train(moe_layer{sparse_mixer_router<Scalar>{8, 4, {}}, experts()});
  train(moe_layer{expert_choice_router<Scalar>{8, 4}, experts()});
  train(moe_layer{relu_router<Scalar>{8, 4}, experts(), relu_l1{2, fixed_l1{0.1}}});
  train(moe_layer{soft_moe_router<Scalar>{8, 4}, experts()});
  train(moe_layer{dselect_k_router<Scalar>{8, 4}, experts(), dselect_entropy<>{}});
  train(moe_layer{top_any_router<Scalar>{8, 4}, experts()});
  train(shared_expert_layer{moe_layer{top_k_router<Scalar>{8, 4}, experts()}, swiglu<Scalar>{8, 16}, gated});
  train(moe_layer{top_k_router<Scalar>{8, 4}, expert_union{bank{2, 8, 16}, expert_bank<zero_expert<Scalar>>{2, 8}}});
}

}  // namespace

int main() {
  use_everything<float>();
  const moe_layer layer{top_k_router<float>{8, 4}, expert_bank<swiglu<float>>{4, 8, 16}};
  const auto small = layer.stored_as<bfloat16_storage>();
  save(small, "model.safetensors");
  const checkpoint_model model("folder");
  const auto published = load_published_layer<float>(model, {.layer = 0}, weight_type::bfloat16);
  openmp_executor threads(2);
  routing_context<float> context;
  context.executor = threads;
}
