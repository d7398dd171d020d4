#include <sluice/io/name_pattern.hpp>

#include "support.hpp"

#include <string>

using namespace sluice;

TEST_CASE("matches_pattern: the whole name, with stars and question marks", "[io]") {
  CHECK(matches_pattern("model.norm", "model.norm"));
  CHECK_FALSE(matches_pattern("model.norm", "model.norm.weight"));
  CHECK_FALSE(matches_pattern("norm", "model.norm"));
  CHECK(matches_pattern("*", ""));
  CHECK(matches_pattern("*", "model.norm"));
  CHECK_FALSE(matches_pattern("", "m"));
  CHECK(matches_pattern("", ""));
  CHECK(matches_pattern("*.scale", "a.b.scale"));
  CHECK_FALSE(matches_pattern("*.scale", "a.scale_inv"));
  CHECK(matches_pattern("model.layers.?.mlp.*.weight_scale*", "model.layers.3.mlp.experts.12.up.weight_scale_inv"));
  CHECK_FALSE(matches_pattern("model.layers.?.mlp.*", "model.layers.12.mlp.gate"));
  CHECK(matches_pattern("*ab*ab", "ababxabab"));
  CHECK_FALSE(matches_pattern("a?", "a"));
  CHECK(matches_any({"x", "y*"}, "yes"));
  CHECK_FALSE(matches_any({}, "yes"));
}

TEST_CASE("matches_pattern: a pattern of many stars against a long name ends soon", "[io]") {
  std::string pattern;
  for (int i = 0; i < 200; ++i) pattern += "*a";
  CHECK_FALSE(matches_pattern(pattern + "b", std::string(20'000, 'a')));
}
