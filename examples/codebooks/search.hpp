/// `codebooks search`: an index of product codes over vectors, its recall against exact search, and its speed.
#pragma once

#include "options.hpp"

namespace codebooks {

/// Prints what it found; returns the exit code.
int search(const search_options& o);

}  // namespace codebooks
