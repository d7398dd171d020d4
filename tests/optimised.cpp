// What most tests spend their time in, compiled once and optimised where the tests are not: linked before their objects, it is what the
// linker takes of all functions that both have.
#include <sluice/codebook/codes/learned.hpp>
#include <sluice/codebook/repair/anchors.hpp>
#include <sluice/codebook/vector_quantizer.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>

namespace sluice::test {

namespace {

template <typename Layer>
void step(Layer& layer, matrix<typename Layer::scalar>& x, const routing_context<typename Layer::scalar>& context) {
  typename Layer::tape tape;
  typename Layer::workspace workspace;
  layer.forward(x, x, workspace, context);
  layer.forward(x, x, tape, context);
  layer.backward(x, x, tape);
}

template <typename Scalar>
void step_of_every(matrix<Scalar>& x, const routing_context<Scalar>& context) {
  moe_layer gated{noisy_top_k_router<Scalar>{4, 4}, expert_bank<swiglu<Scalar>>{4, 4, 4}};
  moe_layer plain{soft_moe_router<Scalar>{4, 4}, expert_bank<ffn<Scalar, gelu>>{4, 4, 4}};
  step(gated, x, context);
  step(plain, x, context);
}

}  // namespace

/// Never called: it is here to be compiled.
void step_of_every_kind(matrix<float>& x, const routing_context<float>& context) { step_of_every(x, context); }
void step_of_every_kind(matrix<double>& x, const routing_context<double>& context) { step_of_every(x, context); }
/// The search for codes, and every token with every code.
void step_of_codes(matrix<float>& x, const routing_context<float>& context) {
  vector_quantizer codes{learned_codes<float>{4, 4}, cosine_similarity{}, anchors<float>{4, 4}};
  step(codes, x, context);
  vector_quantizer<learned_codes<float>, cosine_similarity, anchors<float>>::tape tape;
  codes.after_step(tape);
}

}  // namespace sluice::test
