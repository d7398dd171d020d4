#include "published_layers.hpp"

namespace sluice::inline SLUICE_ISA {

template std::unique_ptr<published_layer<float>> load_published_layer(const checkpoint_model&, const block_id&, weight_type,
                                                                      const layer_load_options&);

}  // namespace sluice::inline SLUICE_ISA
