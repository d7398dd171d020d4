// The attention that every byte shares.
#include <sluice/attention/self_attention.hpp>

#include "kinds.hpp"

namespace language_model {

part dense_attention(const sizes& s) {
  return part(sluice::self_attention<float>{s.width, {.heads = 4, .rotary = {.width = s.width / 4}}});
}

}  // namespace language_model
