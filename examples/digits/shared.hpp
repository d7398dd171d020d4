/// What the digits example has in common with other examples.
#pragma once

#include "../shared/colour.hpp"
#include "../shared/command_line.hpp"
#include "../shared/error.hpp"
#include "../shared/file.hpp"
#include "../shared/progress_line.hpp"
#include "../shared/svg.hpp"
#include "../shared/text.hpp"

namespace digits {
using namespace shared;
}
