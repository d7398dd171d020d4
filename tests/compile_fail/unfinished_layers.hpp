// Layers for programs that must not compile: one that can only infer, and one that lacks nothing a wrapper asks for.
#pragma once

#include <sluice/core/context.hpp>

struct layer_without_training {
  using scalar = float;
  using context_type = sluice::routing_context<float>;
  struct workspace {};
  struct tape {};
  sluice::index_t inputs() const { return 4; }
  sluice::index_t outputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  void forward(sluice::tokens_in<float>, sluice::tokens_out<float>, workspace&, const context_type&) const {}
};

struct whole_layer : layer_without_training {
  using layer_without_training::forward;
  void forward(sluice::tokens_in<float>, sluice::tokens_out<float>, tape&, const context_type&) const {}
};
