/// Huge pages for large memory, where the system gives them to who asks.
///
/// A processor fetches ahead within a page and looks every page up: one thread of an EPYC read one stream at 19 GB/s in
/// pages of 4 KB and at 34 in pages of 2 MB, eight streams at 24 and 28, and a layer's single token took 6.5 and 6.1
/// ms. Linux gives them to memory that asks before it is first written where transparent huge pages are set to
/// `madvise` (or to `always`, where nobody has to ask). Elsewhere this does nothing.
#pragma once

#include <sluice/core/isa.hpp>

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sluice::inline SLUICE_ISA::detail {

inline constexpr std::size_t huge_page = std::size_t{1} << 21;

/// Asks for huge pages where whole ones fit into fresh memory. Nothing is promised and nothing can fail.
inline void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (address + huge_page - 1) & ~(huge_page - 1);
  const std::uintptr_t end = (address + bytes) & ~(huge_page - 1);
  if (begin < end) ::madvise(static_cast<char*>(data) + (begin - address), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace sluice::inline SLUICE_ISA::detail
