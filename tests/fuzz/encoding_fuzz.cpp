// Tensors as checkpoints with quantised weights have them, drawn in one of the layouts and then altered: parts that are
// missing, of another type, shape or content, and a config that says something else. What comes of them is no layout,
// a problem in a line, or numbers that can all be read, alone or together, the same as by codes and scales. Parts have
// memory of exactly their size, so AddressSanitizer sees every step beyond them.
#include <sluice/checkpoint/encoding/decoded_tensor.hpp>
#include <sluice/io/gguf_tensor.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "byte_reader.hpp"

using namespace sluice;
using sluice::test::bit_stream;
using sluice::test::byte_reader;
using sluice::test::demand;

namespace {

const std::string stem = "layers.0.experts.0.w1";

/// The tensors of one case.
class drawn_parts {
public:
  explicit drawn_parts(byte_reader& in) : in_(in), bits_(in.bits<std::uint16_t>()) {}

  /// With content from the stream, as a file that passed its reader has it: as many bytes as the shape needs.
  tensor_info& add(const std::string& name, data_type type, std::vector<std::int64_t> shape) {
    parts_.push_back({stem + name, type, std::move(shape), {}});
    fill(parts_.back());
    return parts_.back();
  }
  void add_gguf(const std::string& name, ggml_type type, std::vector<std::int64_t> shape) {
    const ggml_type_traits* const traits = find_ggml_type(static_cast<std::uint32_t>(type));
    const std::int64_t blocks = (shape.back() + traits->inputs - 1) / traits->inputs;
    std::size_t size = as_size(blocks * traits->bytes);
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) size *= as_size(shape[i]);
    shape.back() = blocks * traits->inputs;
    parts_.push_back(
        detail::gguf_tensor(stem + name, static_cast<std::uint32_t>(type), std::move(shape), memory(size)));
  }

  /// Words that are all of `values` in turn.
  template <typename T>
  static void set(tensor_info& tensor, std::initializer_list<T> values) {
    auto* const bytes = const_cast<std::byte*>(tensor.bytes.data());  // they are drawn_parts' own
    for (std::size_t i = 0; (i + 1) * sizeof(T) <= tensor.bytes.size(); ++i)
      std::memcpy(bytes + i * sizeof(T), values.begin() + i % values.size(), sizeof(T));
  }

  void alter() {
    if (parts_.empty()) return;
    constexpr data_type types[] = {data_type::f32, data_type::bf16, data_type::f16,     data_type::i32,
                                   data_type::i64, data_type::u8,   data_type::f8_e4m3, data_type::f8_e8m0,
                                   data_type::i8,  data_type::f64};
    constexpr const char* names[] = {
        "",        ".weight",         ".weight_scale", ".qweight", ".scale", ".weight_scale_inv",
        "_blocks", ".weight_scale_2", ".g_idx",        "_scales"};
    constexpr std::int64_t extents[] = {0, 1, 2, 3, 4, 7, 8, 9, 16, 31, 32, 33, 48, 64};
    const auto which = in_.below(static_cast<index_t>(parts_.size()));
    tensor_info& part = parts_[as_size(which)];
    switch (in_.below(6)) {
      case 0:
        parts_.erase(parts_.begin() + which);
        break;
      case 1:
        part.dtype = in_.one_of(types);
        part.decoder = nullptr;
        fill(part);
        break;
      case 2:
        if (part.decoder != nullptr || part.shape.empty()) break;
        part.shape[as_size(in_.below(static_cast<index_t>(part.shape.size())))] = in_.one_of(extents);
        fill(part);
        break;
      case 3:
        if (part.decoder != nullptr || part.shape.size() > 4) break;
        if (in_.flag())
          part.shape.push_back(in_.one_of(extents));
        else if (!part.shape.empty())
          part.shape.pop_back();
        fill(part);
        break;
      case 4:
        part.name = stem + in_.one_of(names);
        break;
      default:
        set<std::uint32_t>(part, {in_.bits<std::uint32_t>()});
        break;
    }
  }

  const std::deque<tensor_info>& all() const { return parts_; }
  const tensor_info* find(const std::string& name) const {
    for (const tensor_info& part : parts_)
      if (part.name == name) return &part;
    return nullptr;
  }

private:
  void fill(tensor_info& part) {
    std::size_t size = size_of(part.dtype);
    for (const std::int64_t extent : part.shape) size *= as_size(extent);
    part.bytes = memory(std::min(size, std::size_t{1} << 20U));
    while (part.elements() * size_of(part.dtype) > part.bytes.size()) part.shape.back() = 0;
    part.bytes = part.bytes.first(part.elements() * size_of(part.dtype));
  }
  std::span<const std::byte> memory(std::size_t size) {
    auto& bytes = memory_.emplace_back(new std::byte[size]);
    for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(bits_.next());
    return {bytes.get(), size};
  }

  byte_reader& in_;
  bit_stream bits_;
  std::deque<tensor_info> parts_;
  std::deque<std::unique_ptr<std::byte[]>> memory_;
};

std::int64_t pieces(std::int64_t count, std::int64_t length) { return (count + length - 1) / length; }

/// One matrix, or a stack of them, in a layout that is as it should be; the config says so.
void add_layout(index_t kind, byte_reader& in, drawn_parts& parts, model_config& config) {
  constexpr std::int64_t sizes[] = {16, 32, 8, 64, 96, 24, 40, 1, 33};
  constexpr index_t bit_counts[] = {4, 8, 2, 3};
  constexpr index_t groups[] = {16, 32, 8, -1, 64, 3};
  const std::int64_t inputs = in.one_of(sizes), outputs = in.one_of(sizes);
  const index_t bits = in.one_of(bit_counts), group = in.one_of(groups);
  const std::int64_t of_groups = group < 0 ? 1 : pieces(inputs, group);
  const bool is_stack = in.flag();
  const auto stacked = [&](std::vector<std::int64_t> shape) {
    if (is_stack) shape.insert(shape.begin(), 2);
    return shape;
  };
  weight_encoding& how = config.encoding;
  how.bits = bits;
  how.group = group;
  using enum data_type;
  switch (kind) {
    case 0:
      config.quantization = "gptq";
      parts.add(".qweight", i32, {inputs * bits / 32, outputs});
      parts.add(".qzeros", i32, {of_groups, pieces(outputs * bits, 32)});
      parts.add(".scales", f16, {of_groups, outputs});
      if (in.flag()) drawn_parts::set<std::int32_t>(parts.add(".g_idx", i32, {inputs}), {0});
      break;
    case 1:
      config.quantization = "awq";
      parts.add(".qweight", i32, {inputs, outputs / 8});
      parts.add(".qzeros", i32, {of_groups, outputs / 8});
      parts.add(".scales", f16, {of_groups, outputs});
      break;
    case 2:
      config.quantization = "compressed-tensors";
      parts.add(".weight_packed", i32, {outputs, pieces(inputs * bits, 32)});
      parts.add(".weight_scale", bf16, {outputs, of_groups});
      drawn_parts::set<std::int64_t>(parts.add(".weight_shape", i64, {2}), {outputs, inputs});
      if (in.flag()) parts.add(".weight_zero_point", i32, {pieces(outputs * bits, 32), of_groups});
      if (in.flag()) drawn_parts::set<std::int32_t>(parts.add(".weight_g_idx", i32, {inputs}), {in.flag() ? -1 : 0});
      break;
    case 3:
      config.quantization = "fp8";
      how.tile_rows = how.tile_inputs = 16;
      parts.add(".weight", f8_e4m3, stacked({outputs, inputs}));
      parts.add(".weight_scale_inv", f32, stacked({pieces(outputs, 16), pieces(inputs, 16)}));
      break;
    case 4:
      config.quantization = "compressed-tensors";
      parts.add(".weight", f8_e4m3, {outputs, inputs});
      parts.add(".weight_scale", bf16, in.flag() ? std::vector<std::int64_t>{outputs, 1} : std::vector<std::int64_t>{});
      break;
    case 5:
      parts.add(".weight_packed", u8, stacked({outputs, inputs / 2}));
      parts.add(".weight_scale", f8_e4m3, stacked({outputs, inputs / 16}));
      drawn_parts::set<float>(parts.add(".weight_global_scale", f32, {1}), {3});
      break;
    case 6:
      config.quantization = "modelopt";
      parts.add(".weight", u8, stacked({outputs, inputs / 2}));
      parts.add(".weight_scale", f8_e4m3, stacked({outputs, inputs / 16}));
      drawn_parts::set<float>(parts.add(".weight_scale_2", f32, {}), {0.25F});
      parts.add(".input_scale", f32, {1});
      break;
    case 7:
      config.quantization = "mxfp4";
      parts.add("_blocks", u8, {2, outputs, inputs / 32, 16});
      parts.add("_scales", u8, {2, outputs, inputs / 32});
      break;
    case 8:
      parts.add(".weight", i8, {outputs, inputs / 2});
      parts.add(".scale", f8_e8m0, {outputs, inputs / 32});
      break;
    default: {
      constexpr ggml_type types[] = {ggml_type::nvfp4, ggml_type::q8_0, ggml_type::f16, ggml_type::f32, ggml_type::i32};
      config.quantization = "gguf";
      parts.add_gguf(".weight", in.one_of(types), stacked({outputs, inputs}));
      parts.add(".scale", f32, {is_stack && in.flag() ? 2 : 1});
      parts.add(".input_scale", f32, {1});
      break;
    }
  }
}

void alter(byte_reader& in, model_config& config) {
  constexpr const char* methods[] = {"gptq", "awq", "compressed-tensors", "", "fp8", "gguf", "exl2"};
  constexpr const char* formats[] = {"gptq_v2", "gemm", "pack-quantized", "marlin", "gptq", "mixed-precision", ""};
  weight_encoding& how = config.encoding;
  index_t* const numbers[] = {&how.bits, &how.group, &how.tile_rows, &how.tile_inputs};
  switch (in.below(3)) {
    case 0:
      config.quantization = in.one_of(methods);
      break;
    case 1:
      how.format = in.one_of(formats);
      break;
    default:
      *in.one_of(numbers) = static_cast<index_t>(in.bits<std::uint32_t>() >> in.below(32) & 0xFFFFFFU) - 1;
      break;
  }
}

/// Codes have one zero where files have two.
bool same(float a, float b) { return a == b || (is_nan(a) && is_nan(b)); }

void check_numbers(byte_reader& in, const tensor_info& tensor) {
  const std::size_t count = tensor.elements();
  demand(count <= std::size_t{1} << 22U);  // no more than the parts hold
  const std::unique_ptr<float[]> all(new float[count]);
  tensor.decoder->read(0, {all.get(), count});
  if (count > 0) {
    const std::size_t first = in.bits<std::uint16_t>() % count, some = 1 + in.byte() % (count - first);
    const std::unique_ptr<float[]> part(new float[some]);
    tensor.decoder->read(first, {part.get(), some});
    for (std::size_t i = 0; i < some; ++i) demand(same(part[i], all[first + i]));
  }
  const coded_matrix* const coded = tensor.decoder->coded();
  if (coded == nullptr) return;
  demand(coded->rows() * coded->inputs() == static_cast<index_t>(count));
  const index_t step = in.between(1, 2), rows = (coded->rows() + step - 1) / step;
  const matrix<float> numbers = coded->codes(0, step, rows).to_matrix();
  demand(numbers.rows() == rows && numbers.cols() == coded->inputs());
  for (index_t r = 0; r < rows; ++r)
    for (index_t i = 0; i < coded->inputs(); ++i)
      demand(same(numbers(r, i), all[as_size(r * step * coded->inputs() + i)]));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  byte_reader in(data, size);
  const index_t kind = in.below(10);
  model_config config;
  drawn_parts parts(in);
  add_layout(kind, in, parts, config);
  for (index_t i = in.below(4); i > 0; --i) {
    if (in.flag())
      parts.alter();
    else
      alter(in, config);
  }
  const auto find = [&](const std::string& name) { return parts.find(name); };
  for (const tensor_info& anchor : parts.all()) {
    const auto decoded = decode_parts(anchor, config, find);
    if (!decoded) continue;
    demand(!decoded->parts.empty() && decoded->parts.front() == anchor.name);
    for (const std::string& part : decoded->parts) demand(parts.find(part) != nullptr);
    demand(decoded->problem.size() < 2000 && decoded->problem.find('\n') == std::string::npos);
    if (decoded->problem.empty() && decoded->info.decoder != nullptr) check_numbers(in, decoded->info);
  }
  return 0;
}
