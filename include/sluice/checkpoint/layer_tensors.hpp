/// layer_tensors: the parameters of a layer as tensors of a published model, to be written.
///
///   sluice::layer_tensors tensors(layer, model.names({.layer = 3}));
///   tensors.set_types_of(model.files());           // as the files have them; otherwise as the layer has them
///   tensors.add_to(writer);                        // a safetensors_writer or checkpoint_writer
///   add_unchanged(writer, model.files(), {&tensors});      // the rest of the model, if the file is to be all of it
///   writer.save(path);
///
/// Elements are converted while they are written, piece by piece; those that need no conversion keep their bits. What
/// others have lost by rounding is in report() once saved; a save throws std::range_error, and leaves no file, where a
/// finite number would become infinite. The object refers to the layer, and the writer to the object, until saved. F64,
/// F32, BF16 and F16 can be written, and state, such as a table of experts, as I32 and I64.
#pragma once

#include <sluice/checkpoint/load_layer.hpp>
#include <sluice/checkpoint/tensor_copy.hpp>
#include <sluice/checkpoint/tensor_names.hpp>
#include <sluice/io/conversion_loss.hpp>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class layer_tensors {
public:
  /// Throws std::invalid_argument if the layer has a parameter for which the family has no tensor.
  template <typename Layer>
  layer_tensors(const Layer& layer, const tensor_names& names) {
    detail::problem_list problems;
    for (tensor_copy& copy : detail::copies_of(layer, names, problems)) {
      auto [entry, is_new] = tensors_.try_emplace(copy.place.tensor);
      if (is_new) entry->second.type = copy.element_type();
      entry->second.parts.push_back(std::move(copy));
    }
    if (problems.count() > 0) throw_invalid("the layer is not of this family:", problems.text());
  }

  /// Writes all weights and biases as this type; state, such as a selection bias, stays in the layer's, since it is
  /// made of steps that are small beside it. Throws std::invalid_argument if weights cannot be written as the type.
  void set_type(data_type type) {
    validate(type);
    for (auto& [name, tensor] : tensors_)
      if (tensor.parts.front().role() != parameter_role::state) tensor.type = type;
  }

  /// Writes every tensor that the files have as the type that it has there.
  void set_types_of(const checkpoint_files& files) {
    for (auto& [name, tensor] : tensors_)
      if (const located_tensor* const found = files.find(name)) {
        const bool is_state = tensor.parts.front().role() == parameter_role::state;
        if (!is_state || !detail::holds_whole_numbers(found->info.dtype)) validate(found->info.dtype);
        tensor.type = found->info.dtype;
      }
  }

  bool contains(const std::string& tensor) const { return tensors_.contains(tensor); }

  /// What was lost in the last save.
  conversion_report report() const {
    conversion_report report;
    for (const auto& [name, tensor] : tensors_) report.add(name, tensor.loss);
    return report;
  }

  template <typename Writer>
  void add_to(Writer& file) const {
    for (const auto& [name, tensor] : tensors_)
      file.add(name, tensor.parts.front().place.shape, tensor.type,
               typename Writer::source{&tensor, [](const void* object, std::size_t first, std::span<std::byte> bytes) {
                                         static_cast<const assembled*>(object)->read(first, bytes);
                                       }});
  }

private:
  /// A tensor and the parameters that it is put together of; together they cover it.
  struct assembled {
    data_type type;
    std::vector<tensor_copy> parts;
    mutable conversion_loss loss = {};  ///< of the elements that were written last, from the first on

    void read(std::size_t first, std::span<std::byte> bytes) const {
      if (first == 0) loss = {};
      for (const tensor_copy& part : parts) part.write(type, static_cast<index_t>(first), bytes, loss);
      const tensor_place& place = parts.front().place;
      const bool is_last = first + bytes.size() / size_of(type) == elements_of(place.shape);
      if (is_last && loss.beyond > 0)
        throw std::range_error("sluice: tensor \"" + detail::printable(place.tensor) +
                               "\" cannot be written: " + detail::beyond_text(loss, type));
    }
  };

  static std::size_t elements_of(const std::vector<std::int64_t>& shape) {
    std::size_t count = 1;
    for (const std::int64_t extent : shape) count *= static_cast<std::size_t>(extent);
    return count;
  }

  static void validate(data_type type) {
    if (!detail::holds_weights(type)) throw_invalid("weights cannot be written as ", name_of(type));
  }

  std::map<std::string, assembled> tensors_;  // nodes stay where they are: writers refer to them
};

/// Adds every tensor of the files that is none of these layers'. The writer refers to the files until it has saved.
template <typename Writer>
void add_unchanged(Writer& file, const checkpoint_files& files, std::initializer_list<const layer_tensors*> changed) {
  for (const located_tensor& tensor : files.tensors())
    if (std::none_of(changed.begin(), changed.end(),
                     [&](const layer_tensors* layer) { return layer->contains(tensor.info.name); }))
      file.add(tensor.info);
}

}  // namespace sluice::inline SLUICE_ISA
