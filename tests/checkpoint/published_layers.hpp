// For programs that load whatever is published, with sluice_published_layers: all of those layers compile once (published_layers.cpp).
#pragma once

#include <sluice/checkpoint/published_layer.hpp>

namespace sluice::inline SLUICE_ISA {

extern template std::unique_ptr<published_layer<float>> load_published_layer(const checkpoint_model&, const block_id&, weight_type,
                                                                             const layer_load_options&);

}  // namespace sluice::inline SLUICE_ISA
