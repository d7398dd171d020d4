// Any bytes are either refused with a file_error or are a config that can be written and read again unchanged.
#include <sluice/checkpoint/model_config.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

namespace {

void require(bool condition) {
  if (!condition) std::abort();  // what a fuzzer reports as a crash
}

std::optional<sluice::model_config> parse(std::string_view text) {
  try {
    return sluice::parse_model_config(text, "fuzz");
  } catch (const sluice::file_error& error) {
    require(std::strlen(error.what()) < 2000);
    return std::nullopt;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto config = parse({reinterpret_cast<const char*>(data), size});
  if (!config) return 0;
  require(config->top_k >= 1 && config->top_k <= config->experts);
  require(!config->moe_layers.empty() || !config->decoder_moe_layers.empty());
  require(parse(sluice::to_json(*config)) == config);
  return 0;
}
