/// What several tests of the digits example need.
#pragma once

#include "../../shared/testing.hpp"
#include "../shared.hpp"

namespace digits::test {
using namespace shared::testing;
}
