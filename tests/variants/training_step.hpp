// A training step of a layer, for sources that are compiled for several instruction sets: internal to each.
#pragma once

#include "inputs.hpp"
#include "layer.hpp"

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

namespace {

constexpr std::ptrdiff_t width = 24;

using swiglu_layer = sluice::moe_layer<sluice::top_k_router<float>, sluice::expert_bank<sluice::swiglu<float>>>;

swiglu_layer make_swiglu_layer(int experts) {
  swiglu_layer layer{sluice::top_k_router<float>{width, experts, {.top_k = 3}},
                     sluice::expert_bank<sluice::swiglu<float>>{experts, width, 37}};
  sluice::initialize(layer, 3);
  return layer;
}

Eigen::Map<const sluice::matrix<float>> view(const std::vector<float>& v) {
  return {v.data(), static_cast<sluice::index_t>(v.size()) / width, width};
}
Eigen::Map<sluice::matrix<float>> view(std::vector<float>& v) {
  return {v.data(), static_cast<sluice::index_t>(v.size()) / width, width};
}

border::results run_training_step(swiglu_layer& layer, const std::vector<float>& x, const std::vector<float>& dy) {
  border::results r{.y = std::vector<float>(x.size()), .dx = std::vector<float>(x.size()), .gradients = {}};
  swiglu_layer::tape tape;
  sluice::zero_gradients(layer);
  layer.forward(view(x), view(r.y), tape);
  layer.backward(view(dy), view(r.dx), tape);
  sluice::for_each_parameter(layer, [&](const std::string&, sluice::parameter<float>& p) {
    const auto gradient = p.gradient_matrix();
    std::vector<float>& copy = r.gradients.emplace_back();
    for (sluice::index_t row = 0; row < gradient.rows(); ++row)
      for (sluice::index_t col = 0; col < gradient.cols(); ++col) copy.push_back(gradient(row, col));
  });
  return r;
}

}  // namespace
