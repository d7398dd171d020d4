/// Whether this is still the process that something was made in, or a child of it: threads do not live on in a child.
#pragma once

#include <sluice/core/isa.hpp>

#if __has_include(<unistd.h>)
#include <unistd.h>
#define SLUICE_HAS_FORK 1
#else
#define SLUICE_HAS_FORK 0
#endif

namespace sluice::inline SLUICE_ISA::detail {

class process {
public:
#if SLUICE_HAS_FORK
  bool is_child() const noexcept { return ::getpid() != made_in_; }

private:
  ::pid_t made_in_ = ::getpid();
#else
  static constexpr bool is_child() noexcept { return false; }
#endif
};

}  // namespace sluice::inline SLUICE_ISA::detail

#undef SLUICE_HAS_FORK
