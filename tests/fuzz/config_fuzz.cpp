// Any bytes are either refused with a file_error or are a config that can be written and read again unchanged.
#include <sluice/checkpoint/model_config.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "demand.hpp"

using sluice::test::demand;

namespace {

std::optional<sluice::model_config> parse(std::string_view text) {
  try {
    return sluice::parse_model_config(text, "fuzz");
  } catch (const sluice::file_error& error) {
    demand(std::strlen(error.what()) < 2000);
    return std::nullopt;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto config = parse({reinterpret_cast<const char*>(data), size});
  if (!config) return 0;
  demand(config->top_k >= 1 && config->top_k <= config->experts);
  demand(!config->moe_layers.empty() || !config->decoder_moe_layers.empty());
  demand(parse(sluice::to_json(*config)) == config);
  return 0;
}
