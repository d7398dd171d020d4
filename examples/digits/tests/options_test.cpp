#include "options.hpp"  // first: proves that the header stands alone

#include <array>

#include "support.hpp"

using namespace digits;
using digits::test::message_of;

namespace {

constexpr std::array<std::string_view, 3> known = {"top_k", "switch", "soft_moe"};

std::optional<options> parse(std::vector<const char*> words, std::ostream& out) {
  words.insert(words.begin(), "digits");
  return parse_options(static_cast<int>(words.size()), words.data(), known, out);
}

options parse(std::vector<const char*> words) {
  std::ostringstream out;
  const auto o = parse(std::move(words), out);
  REQUIRE(o.has_value());
  CHECK(out.str().empty());
  return *o;
}

std::string refused(std::vector<const char*> words) {
  std::ostringstream out;
  const std::string message = message_of([&] { parse(std::move(words), out); });
  CHECK(message.find('\n') == std::string::npos);
  CHECK(out.str().empty());
  return message;
}

}  // namespace

TEST_CASE("options: defaults", "[digits][options]") {
  const options o = parse({});
  CHECK(o.seeds == 1);
  CHECK(o.routers == std::vector<std::string>{"top_k", "switch", "soft_moe"});
  CHECK(o.data == SLUICE_EXAMPLE_DATA "/digits.csv");
  CHECK(o.svg == "digits_routing.svg");
  CHECK(o.csv.empty());
  CHECK(o.patch == patch_shape::square);
  CHECK_FALSE(o.quiet);
}

TEST_CASE("options: every option is read", "[digits][options]") {
  const options o =
      parse({"--seed", "18446744073709551615", "--seeds", "3", "--epochs=7", "--router", "soft_moe", "--data", "a.csv",
             "--svg", "b.svg", "--csv", "c.csv", "--threads", "2", "--patch", "row", "--quiet"});
  CHECK(o.seed == 18446744073709551615u);
  CHECK(o.seeds == 3);
  CHECK(o.epochs == 7);
  CHECK(o.routers == std::vector<std::string>{"soft_moe"});
  CHECK(o.data == "a.csv");
  CHECK(o.svg == "b.svg");
  CHECK(o.csv == "c.csv");
  CHECK(o.threads == 2);
  CHECK(o.patch == patch_shape::row);
  CHECK(o.quiet);
}

TEST_CASE("options: routers can be listed in several ways, and none is trained twice", "[digits][options]") {
  using names = std::vector<std::string>;
  CHECK(parse({"--router", "soft_moe,top_k"}).routers == names{"top_k", "soft_moe"});
  CHECK(parse({"--router", "soft_moe", "--router", "top_k"}).routers == names{"top_k", "soft_moe"});
  CHECK(parse({"--router", "switch", "switch"}).routers == names{"switch"});
  CHECK(parse({"--router", "all"}).routers.size() == 3);
  CHECK(parse({"--router", "top_k,all"}).routers.size() == 3);
}

TEST_CASE("options: wrong values are refused in one line", "[digits][options]") {
  CHECK(refused({"--router", "nope"}) == "unknown router 'nope'; known are: all, top_k, switch, soft_moe");
  CHECK(refused({"--router", "all,nope"}).starts_with("unknown router 'nope'"));
  for (const char* bad : {"0", "-1", "1.5", "1e3", "0x10", "ten", "", " 1", "99999999999999999999"}) {
    CHECK(refused({"--epochs", bad}) ==
          "--epochs needs a whole number from 1 to 100000, not '" + std::string(bad) + "'");
    CHECK(refused({"--seeds", bad}).starts_with("--seeds needs a whole number from 1 to 1000, not"));
    CHECK(refused({"--threads", bad}).starts_with("--threads needs a whole number from 1 to 1024, not"));
  }
  CHECK(refused({"--seed", "-1"}).starts_with("--seed needs a whole number from 0 to 18446744073709551615, not"));
  CHECK(refused({"--seed", "18446744073709551616"}).starts_with("--seed needs a whole number"));
  CHECK(refused({"--patch", "hexagon"}) == "--patch needs square or row, not 'hexagon'");
  CHECK(refused({"--svg", ""}) == "--svg needs the name of a file");
  CHECK(refused({"--csv", ""}) == "--csv needs the name of a file");
  CHECK(refused({"--csv", "x", "--svg", "x"}).starts_with("--csv and --svg name the same file"));
  CHECK(refused({"--csv", SLUICE_EXAMPLE_DATA "/digits.csv"}).ends_with("would overwrite the data"));
  CHECK(refused({"--quiet", "--bar"}) == "--quiet and --bar contradict each other");
  for (const auto& words : std::vector<std::vector<const char*>>{
           {"--seed"}, {"--data"}, {"--router"}, {"--wrong"}, {"stray"}, {"--seed", "1", "--seed", "2"}, {"-s", "1"}})
    CHECK(refused(words).ends_with("(--help shows what is possible)"));
}

TEST_CASE("options: help names every option and every router", "[digits][options]") {
  std::ostringstream out;
  CHECK_FALSE(parse({"--help"}, out).has_value());
  for (const char* word : {"--seed ", "--seeds", "--epochs", "--router", "--data", "--svg", "--csv", "--threads",
                           "--patch", "--quiet", "--bar", "top_k, switch, soft_moe"})
    CHECK(out.str().find(word) != std::string::npos);
}
