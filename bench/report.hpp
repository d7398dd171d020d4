/// The three files of a report, as text.
#pragma once

#include <string>

#include "environment.hpp"
#include "session.hpp"

namespace bench {

std::string csv(const records& all);
std::string markdown(const session& s, const facts& environment);
std::string roofline_svg(const session& s, const facts& environment);

}  // namespace bench
