#include <sluice/core/variant.hpp>

#include <cstdio>
#include <lanes_variants.hpp>
#include <string_view>

int main() {
  const auto& best = sluice::best_variant(lanes_variants);
  std::printf("%s: %d lanes\n", best.isa, best.entry());
  return best.entry() == (std::string_view(best.isa) == "avx2" ? 8 : 4) ? 0 : 1;
}
