// The entry is in a namespace, where nobody looks for it.
#include <sluice/core/variant.hpp>

namespace mine {
int SLUICE_VARIANT_ENTRY(entry)() { return 1; }
}  // namespace mine
