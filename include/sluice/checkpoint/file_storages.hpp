/// keep_file_formats: of a layer whose storage is chosen at run time, every matrix of an expert is kept as the file has
/// it.
///
///   using storage = mixed_storage<bfloat16_storage, coded_storage<q4_k_format>, coded_storage<q6_k_format>>;
///   auto layer = load_layer<qwen3_moe_layer<float, storage>>(checkpoint_model("m-Q4_K_M.gguf"), {.layer = 0});
///
/// The first storage of the list that holds a tensor's numbers as they are takes them: blocks of its GGUF type, codes
/// with scales that are its own (the first row is tried), bfloat16, float16 or float. Where none is, the first of the
/// list, which rounds and says so in the load's report. Maps of one storage stay as they are.
#pragma once

#include <sluice/checkpoint/encoding/coded_matrix.hpp>
#include <sluice/checkpoint/model_tensors.hpp>
#include <sluice/checkpoint/tensor_names.hpp>
#include <sluice/io/tensor_info.hpp>
#include <sluice/kernel/format/ggml_blocks.hpp>
#include <sluice/kernel/format/grid_storage.hpp>
#include <sluice/kernel/format/group_blocks.hpp>
#include <sluice/kernel/mixed_map.hpp>

#include <concepts>
#include <string>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// The mixture inside its wrappers, or what it works in.
template <typename Layer>
auto& innermost(Layer& layer) {
  if constexpr (requires { layer.layer(); })
    return innermost(layer.layer());
  else
    return layer;
}

/// Whether the tensor's numbers are of the storage's kind.
template <typename Storage>
struct keeps_tensor {
  static bool as_is(const tensor_info& tensor) {
    using element = typename Storage::element;
    return (std::same_as<element, bfloat16> && tensor.dtype == data_type::bf16) ||
           (std::same_as<element, float16> && tensor.dtype == data_type::f16) ||
           (std::same_as<element, float> && tensor.dtype == data_type::f32);
  }
};
template <typename Format, arithmetic By>
struct keeps_tensor<coded_storage<Format, By>> {
  static bool as_is(const tensor_info& tensor) {
    if (tensor.decoder == nullptr) return false;
    bool same = false;
    if (const auto blocks = tensor.decoder->blocks()) {
      with_ggml_layout(blocks->type,
                       [&]<typename Layout>(Layout) { same = std::same_as<typename Layout::format, Format>; });
    } else if (const coded_matrix* const codes = tensor.decoder->coded()) {
      const coded_rows rows(*codes);
      same = true;
      for (index_t i = 0; i < codes->inputs() && same; i += Format::inputs)
        same = !changed_by_format<Format>(rows, 0, i).has_value();
    }
    return same;
  }
};

template <typename Format>
struct keeps_tensor<grid_storage<Format>> {
  static bool as_is(const tensor_info& tensor) {
    const auto blocks = tensor.decoder == nullptr ? std::nullopt : tensor.decoder->blocks();
    return blocks.has_value() && blocks->type == Format::type;
  }
};

template <typename... Storages>
void keep_file_format(linear_map<mixed_storage<Storages...>>& map, const tensor_info& tensor) {
  bool found = false;
  const auto choose = [&]<typename Storage>(std::type_identity<Storage>) {
    if (found || !keeps_tensor<Storage>::as_is(tensor)) return;
    found = true;
    map = linear_map<Storage>(map.outputs(), map.inputs());
  };
  (choose(std::type_identity<Storages>()), ...);
}

/// Of an expert whose parameters are called `prefix` and what they are.
template <typename Expert>
void keep_file_formats(Expert& expert, const std::string& prefix, const tensor_names& names,
                       const model_tensors& tensors) {
  const auto keep = [&](const char* part, auto& map) {
    const auto place = names.place_of(prefix + part, map.outputs(), map.inputs());
    const decoded_tensor* const tensor = place ? tensors.find(place->tensor) : nullptr;
    if (tensor != nullptr && tensor->problem.empty()) keep_file_format(map, tensor->info);
  };
  if constexpr (requires { expert.gate(); }) keep("gate", expert.gate());
  keep("up", expert.up());
  keep("down", expert.down());
}

}  // namespace detail

template <typename Layer>
void keep_file_formats(Layer& layer, const tensor_names& names, const model_tensors& tensors) {
  const auto keep = [&](auto& expert, const std::string& prefix) {
    if constexpr (requires { typename std::remove_cvref_t<decltype(expert)>::storage; })
      if constexpr (detail::is_storage_choice<typename std::remove_cvref_t<decltype(expert)>::storage>)
        detail::keep_file_formats(expert, prefix, names, tensors);
  };
  if constexpr (requires { layer.shared(); }) keep(layer.shared(), "shared.");
  auto& mixture = detail::innermost(layer);
  if constexpr (requires { mixture.bank().expert(0); })
    for (index_t e = 0; e < mixture.experts(); ++e)
      keep(mixture.bank().expert(e), "experts." + std::to_string(e) + '.');
}

}  // namespace sluice::inline SLUICE_ISA
