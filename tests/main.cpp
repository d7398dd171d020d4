// The tests' main(), compiled once for all of them. Catch2 3 brings its own, so this file is for Catch2 2 only.
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
