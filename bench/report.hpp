/// The files of a report, as text.
#pragma once

#include <string>
#include <vector>

#include "environment.hpp"
#include "session.hpp"

namespace bench {

std::string csv(const records& all);
std::string markdown(const session& s, const facts& environment);
std::string roofline_svg(const session& s, const facts& environment);
std::string sweep_svg(const session& s);
std::string storage_svg(const session& s);

/// What a point of the sweep reaches, as a part of what its neighbours reach on average.
double beside_neighbours(const std::vector<sweep_point>& sweep, const sweep_point& at);

}  // namespace bench
