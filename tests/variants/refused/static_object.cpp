// The string's constructor would run in every program that holds the variant.
#include <sluice/core/variant.hpp>

#include <string>

std::string text(100, 'x');

int SLUICE_VARIANT_ENTRY(entry)() { return text[0]; }
