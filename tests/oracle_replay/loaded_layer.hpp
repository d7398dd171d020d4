// The same block through a file: written as its family publishes it, loaded, run and compared, forward and backward.
#pragma once

#include "layer_run.hpp"

#include <sluice/checkpoint/load_layer.hpp>

#include <initializer_list>
#include <memory>

namespace oracle {

/// The parameters of a case in a file as the case's family publishes it, in a folder of its own that goes away again. Compiled once,
/// in loaded_layer.cpp.
class published_case {
public:
  template <typename Scalar>
  published_case(const oracle_case<Scalar>& c, const char* layout);
  ~published_case();
  const sluice::checkpoint_model& model() const;

private:
  struct opened;
  std::unique_ptr<opened> opened_;
};

/// bind(layer) -> bindings, as for a layer that was made without a file. Checks y and all gradients for every layout.
template <typename Layer, typename Scalar, typename Bind>
void check_loaded(oracle_case<Scalar>& c, std::initializer_list<const char*> layouts, Bind bind,
                  const sluice::routing_context<Scalar>& context = {}) {
  for (const char* const layout : layouts) {
    const published_case published(c, layout);
    Layer layer = sluice::load_layer<Layer>(published.model(), {.layer = 0});
    const bindings<Scalar> bound = bind(layer);
    typename Layer::tape tape;
    check_task(c, layer, tape, bound, context);
  }
}

}  // namespace oracle
