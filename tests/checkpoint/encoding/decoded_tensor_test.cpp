// Which layout it is that tensors make up, by their names and types.
#include <sluice/checkpoint/encoding/decoded_tensor.hpp>

#include "../../io/messages.hpp"
#include "support.hpp"

#include <map>
#include <set>
#include <string>
#include <vector>

using namespace sluice;
using test::contains;

namespace {

/// Tensors of zeros under names.
struct named_parts {
  std::map<std::string, tensor_info> tensors;
  std::vector<std::byte> zeros = std::vector<std::byte>(4096, std::byte{0x38});

  named_parts& add(const std::string& name, data_type type, std::vector<std::int64_t> shape) {
    tensor_info info{name, type, std::move(shape), {}};
    info.bytes = std::span<const std::byte>(zeros).first(info.elements() * size_of(type));
    tensors.emplace(name, info);
    return *this;
  }
  std::optional<decoded_tensor> decode(const std::string& anchor, const model_config& config = {}) const {
    const auto find = [this](const std::string& name) -> const tensor_info* {
      const auto found = tensors.find(name);
      return found == tensors.end() ? nullptr : &found->second;
    };
    return decode_parts(tensors.at(anchor), config, find);
  }
};

void check_layout(const named_parts& parts, const std::string& anchor, const std::string& name, const std::string& type,
                  const std::vector<std::int64_t>& shape, const model_config& config = {}) {
  CAPTURE(anchor);
  const auto decoded = parts.decode(anchor, config);
  REQUIRE(decoded.has_value());
  CHECK(decoded->problem == "");
  CHECK(decoded->info.name == name);
  CHECK(decoded->info.type_name() == type);
  CHECK(decoded->info.shape == shape);
  std::set<std::string> all;
  for (const auto& [each, info] : parts.tensors) all.insert(each);
  std::set<std::string> used(decoded->parts.begin(), decoded->parts.end());
  used.insert(decoded->unused.begin(), decoded->unused.end());
  CHECK(used == all);
}

model_config config_by(const std::string& method, const weight_encoding& how = {}) {
  model_config config;
  config.quantization = method;
  config.encoding = how;
  return config;
}

}  // namespace

TEST_CASE("decode_parts: every layout is known by its names and types", "[checkpoint][encoding]") {
  using enum data_type;
  check_layout(named_parts().add("w.weight", f8_e4m3, {4, 6}).add("w.weight_scale_inv", f32, {1, 1}), "w.weight",
               "w.weight", "FP8", {4, 6});
  check_layout(named_parts().add("w.weight", f8_e4m3, {4, 6}).add("w.weight_scale", bf16, {4, 1}), "w.weight",
               "w.weight", "FP8", {4, 6});
  check_layout(named_parts().add("x.gate_up_proj", f8_e4m3, {2, 4, 6}).add("x.gate_up_proj_scale_inv", f32, {2, 1, 1}),
               "x.gate_up_proj", "x.gate_up_proj", "FP8", {2, 4, 6});
  check_layout(named_parts().add("w1.weight", f8_e4m3, {4, 6}).add("w1.scale", f8_e8m0, {1, 1}), "w1.weight",
               "w1.weight", "FP8", {4, 6});
  check_layout(named_parts().add("w1.weight", i8, {4, 32}).add("w1.scale", f8_e8m0, {4, 2}), "w1.weight", "w1.weight",
               "MXFP4", {4, 64});
  check_layout(named_parts().add("x.down_proj_blocks", u8, {2, 4, 3, 16}).add("x.down_proj_scales", u8, {2, 4, 3}),
               "x.down_proj_blocks", "x.down_proj_blocks", "MXFP4", {2, 4, 96});
  check_layout(named_parts()
                   .add("w.weight_packed", u8, {4, 16})
                   .add("w.weight_scale", f8_e4m3, {4, 2})
                   .add("w.weight_global_scale", f32, {1})
                   .add("w.input_global_scale", f32, {1}),
               "w.weight_packed", "w.weight", "NVFP4", {4, 32});
  check_layout(named_parts()
                   .add("w.weight", u8, {4, 16})
                   .add("w.weight_scale", f8_e4m3, {4, 2})
                   .add("w.weight_scale_2", f32, {1})
                   .add("w.input_scale", f32, {1}),
               "w.weight", "w.weight", "NVFP4", {4, 32});
  const auto words =
      named_parts().add("w.qweight", i32, {2, 16}).add("w.qzeros", i32, {1, 2}).add("w.scales", f16, {1, 16});
  check_layout(words, "w.qweight", "w.weight", "GPTQ int4", {16, 16}, config_by("gptq", {.bits = 4}));
  const auto by_output =
      named_parts().add("w.qweight", i32, {4, 2}).add("w.qzeros", i32, {1, 2}).add("w.scales", f16, {1, 16});
  check_layout(by_output, "w.qweight", "w.weight", "AWQ int4", {16, 4},
               config_by("awq", {.format = "gemm", .bits = 4}));
}

TEST_CASE("decode_parts: what is no layout is none, and what is half of one says so", "[checkpoint][encoding]") {
  using enum data_type;
  const auto parts = named_parts()
                         .add("w.weight", bf16, {4, 6})
                         .add("ids", i8, {4})
                         .add("a.weight", f8_e4m3, {4, 6})
                         .add("b.weight_packed", i32, {4, 2})
                         .add("c_blocks", u8, {4, 16})
                         .add("d.qweight", i32, {2, 16});
  CHECK(!parts.decode("w.weight"));
  CHECK(!parts.decode("ids"));
  const auto problem = [&](const char* name, const model_config& config = {}) {
    const auto decoded = parts.decode(name, config);
    return decoded && decoded->info.decoder == nullptr ? decoded->problem : "";
  };
  CHECK_THAT(problem("a.weight"), contains("needs \"a.weight_scale_inv\", which is not there"));
  CHECK_THAT(problem("b.weight_packed"), contains("needs \"b.weight_scale\""));
  CHECK_THAT(problem("b.weight_packed", config_by("compressed-tensors", {.format = "marlin-24"})),
             contains("is in the format \"marlin-24\"; only \"pack-quantized\" is read"));
  CHECK_THAT(problem("c_blocks"), contains("needs \"c_scales\""));
  CHECK_THAT(problem("d.qweight"), contains("the config's quant_method is \"\""));
}
