// Parts for programs that must not compile: each lacks what its name says, or is whole.
#pragma once

#include <sluice/core/context.hpp>

struct gate_without_forward {
  using scalar = float;
  struct tape {};
  sluice::index_t inputs() const { return 8; }
  sluice::index_t experts() const { return 4; }
};

struct gate_without_backward : gate_without_forward {
  void forward(sluice::tokens_in<float>, const sluice::routing_context<float>&, sluice::tokens_out<float>, tape&) const {}
};

struct norm_without_backward {
  using scalar = float;
  struct tape {};
  void forward(sluice::tokens_in<float>, sluice::tokens_out<float>, tape&, const sluice::executor_ref&) const {}
};

struct expert_without_outputs {
  using scalar = float;
  sluice::index_t inputs() const { return 4; }
  sluice::index_t saved_columns() const { return 0; }
  void forward(sluice::tokens_in<float>, sluice::tokens_out<float>, sluice::tokens_out<float>) const {}
};

struct bank_without_experts {
  using scalar = float;
  struct tape {};
  sluice::index_t inputs() const { return 4; }
  sluice::index_t outputs() const { return 4; }
};

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
