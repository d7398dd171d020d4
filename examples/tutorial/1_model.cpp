// Step 1: a model of two blocks, and what comes out of it before it has learned anything.
#include <sluice/sluice.hpp>

#include <iostream>

#include "text.hpp"

using namespace sluice;
using namespace tutorial;

// begin block
constexpr index_t D = 64;

/// y = x + mixture(norm(x)): 8 SwiGLU experts of hidden width 64, two a token.
auto make_block() {
  moe_layer mixture{top_k_router<float>{D, 8, {.top_k = 2}}, expert_bank<swiglu<float>>{8, D, 64}};
  return residual_layer{normalized_layer{mixture, rms_norm<float>{D}}};
}
// end block

int main() {
  // begin model
  embedding_layer<float> embedding{letters, 16};
  sequence model{linear_layer<float>{window * 16, D}, make_block(), make_block(), linear_layer<float>{D, letters}};
  initialize(embedding, /*seed=*/1);
  initialize(model, /*seed=*/2);
  // end model

  // begin forward
  const lesson lesson = whole_poem();
  const auto T = static_cast<index_t>(lesson.next.size());
  matrix<float> embedded(T * window, 16), logits(T, letters);

  decltype(embedding)::workspace embedding_workspace;
  embedding.forward(lesson.windows, embedded, embedding_workspace);
  const const_matrix_map<float> x(embedded.data(), T, window * 16);  // a row of six letters is one token

  decltype(model)::workspace workspace;
  model.forward(x, logits, workspace);
  // end forward

  std::cout << parameter_count(embedding) + parameter_count(model) << " numbers to learn, " << T << " tokens\n";
  // begin plan
  const auto& mixture = std::get<1>(workspace.layers).layer.layer;  // residual, norm, mixture
  std::cout << "token 0 goes to experts";
  for (const index_t i : mixture.plan.of_token(0)) std::cout << ' ' << mixture.plan.expert(i);
  std::cout << "; experts' load varies by " << mixture.statistics.load_cv() << " of its mean\n";
  // end plan
  return logits.allFinite() ? 0 : 1;
}
