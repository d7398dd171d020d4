// ggml's block formats: bytes to weights, and numbers to bytes.
#include "exact_weights.hpp"
#include "replays.hpp"

#include <sluice/kernel/format/ggml_blocks.hpp>

namespace oracle {
namespace {

using byte = std::uint8_t;

const ggml_type_traits& type_named(const std::string& name) {
  for (const ggml_type_traits& t : ggml_types)
    if (t.name == name) return t;
  throw unsupported("format " + name);
}

template <typename Scalar>
void replay_blocks(oracle_case<Scalar>& c) {
  const ggml_type_traits& type = type_named(c.template setting<std::string>("format"));
  const auto E = c.template setting<index_t>("E"), R = c.template setting<index_t>("rows"),
             cols = c.template setting<index_t>("cols");
  if (c.template setting<index_t>("ggml_type") != static_cast<index_t>(type.type) ||
      c.template setting<index_t>("block") != type.inputs || c.template setting<index_t>("block_bytes") != type.bytes)
    throw unsupported("another block");
  const auto* const bytes = reinterpret_cast<const byte*>(c.file().at("bytes").bytes.data());
  const matrix<Scalar> x = c.rows("x");
  matrix<float> weights(E * R, cols);
  matrix<Scalar> y(E * x.rows(), R);
  const bool is_known = with_ggml_layout(type.type, [&]<typename Layout>(Layout) {
    for (index_t e = 0; e < E; ++e) {
      const auto block_at = [&](index_t r, index_t first) {
        return bytes + ((e * R + r) * cols + first) / type.inputs * type.bytes;
      };
      linear_map<coded_storage<typename Layout::format>> map(R, cols);
      assign_ggml_blocks(map, type.type,
                         c.file().at("bytes").bytes.subspan(as_size(e * R * cols / type.inputs * type.bytes),
                                                            as_size(R * cols / type.inputs * type.bytes)));
      for (index_t r = 0; r < R; ++r)
        for (index_t i = 0; i < cols; i += type.inputs)
          decode_ggml_block(type.type, block_at(r, i), &weights(e * R + r, i));
      if (map.weight().to_matrix() != weights.middleRows(e * R, R))
        return c.fail("a panel has other numbers than a block");
      y.middleRows(e * x.rows(), x.rows()) = product(x, map);
      std::vector<byte> again(as_size(type.bytes));
      for (index_t r = 0; r < R; ++r)
        for (index_t i = 0; i < cols; i += type.inputs) {
          std::fill(again.begin(), again.end(), byte(0));
          Layout::pack(map.weight().coded_block_at(r, i), again.data());
          if (!std::equal(again.begin(), again.end(), block_at(r, i)))
            return c.fail("a block of a panel packs to other bytes");
        }
    }
  });
  if (!is_known) throw unsupported("format without a layout");
  check_exactly(c, "weight", weights);
  c.check("y", y);
}

/// Quantised bytes, exactly where the rule is closed; elsewhere no more than 1.05 times the reference's squared error.
template <typename Scalar>
void replay_quantised(oracle_case<Scalar>& c) {
  const ggml_type_traits& type = type_named(c.template setting<std::string>("format"));
  const std::vector<float> x = c.file().template read_vector<float>("x");
  std::vector<byte> bytes(x.size() / as_size(type.inputs) * as_size(type.bytes));
  std::vector<float> decoded(x.size());
  double error = 0;
  for (std::size_t i = 0, at = 0; i < x.size(); i += as_size(type.inputs), at += as_size(type.bytes)) {
    if (!encode_ggml_block(type.type, x.data() + i, bytes.data() + at)) throw unsupported("format without a layout");
    decode_ggml_block(type.type, bytes.data() + at, decoded.data() + i);
  }
  for (std::size_t i = 0; i < x.size(); ++i) error += (double(x[i]) - decoded[i]) * (double(x[i]) - decoded[i]);
  const bool exact = c.template setting<bool>("exact");
  const double theirs = c.file().template read_vector<double>("expected.sq_error").at(0);
  if (exact) {
    c.check_bytes("bytes", std::as_bytes(std::span(bytes)));
  } else {
    // Another search is as good: the error is what is held, and that the reference's bytes mean what it says.
    const auto* const source = reinterpret_cast<const byte*>(c.file().at("source_bytes").bytes.data());
    for (std::size_t i = 0; i < x.size(); i += as_size(type.inputs))
      decode_ggml_block(type.type, source + i / as_size(type.inputs) * as_size(type.bytes), decoded.data() + i);
    if (!(error <= 1.05 * theirs)) c.fail("squared error " + std::to_string(error / theirs) + " of the reference's");
    error = std::max(error, theirs);
  }
  const std::vector<Scalar> numbers(decoded.begin(), decoded.end());
  c.check("dequantised", numbers);
  c.check("sq_error", Scalar(error), exact ? 1e-6 : 0.05);
}

}  // namespace

std::vector<replayer> block_formats() {
  return {{"ggml_blocks", replay_blocks<float>, replay_blocks<double>},
          {"ggml_quantise", replay_quantised<float>, replay_quantised<double>}};
}

}  // namespace oracle
