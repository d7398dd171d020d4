/// model_tensors: the tensors of a model as its layers need them: plain ones as they are, quantised ones put together
/// of their parts (encoding/decoded_tensor.hpp) and decoded where they are read.
///
///   model_tensors tensors(files, config);
///   tensors.find("model.layers.3.mlp.experts.5.up_proj.weight")->info     F32 or BF16 as stored, or GPTQ, decoded
///
/// Nothing of the size of the weights is held. `files` must outlive the object; both may be moved.
#pragma once

#include <sluice/checkpoint/encoding/decoded_tensor.hpp>
#include <sluice/checkpoint/model_family.hpp>
#include <sluice/io/checkpoint_files.hpp>
#include <sluice/io/tensor_info.hpp>

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class model_tensors {
public:
  model_tensors(const checkpoint_files& files, const model_config& config) {
    const auto find_stored = [&files](const std::string& name) {
      const located_tensor* const found = files.find(name);
      return found == nullptr ? nullptr : &found->info;
    };
    for (const located_tensor& tensor : files.tensors())
      if (auto decoded = decode_parts(tensor.info, config, find_stored)) tensors_.push_back(*std::move(decoded));
    std::set<std::string> taken;  // as a part of another one
    for (const decoded_tensor& tensor : tensors_) {
      taken.insert(tensor.parts.begin() + 1, tensor.parts.end());
      taken.insert(tensor.unused.begin(), tensor.unused.end());
    }
    // Scales may be of a type that weights have, too: what is a part begins no layout of its own.
    std::erase_if(tensors_, [&](const decoded_tensor& tensor) { return taken.contains(tensor.parts.front()); });
    for (const decoded_tensor& tensor : tensors_) taken.insert(tensor.parts.front());
    std::vector<decoded_tensor> plain;
    for (const located_tensor& tensor : files.tensors())
      if (!taken.contains(tensor.info.name)) plain.push_back({.info = tensor.info, .bytes = tensor.info.bytes.size()});
    for (decoded_tensor& tensor : plain) tensors_.push_back(std::move(tensor));
    std::sort(tensors_.begin(), tensors_.end(),
              [](const decoded_tensor& a, const decoded_tensor& b) { return a.info.name < b.info.name; });
    for (std::size_t i = 1; i < tensors_.size(); ++i)
      if (tensors_[i].info.name == tensors_[i - 1].info.name)
        tensors_[i].problem = tensors_[i - 1].problem =
            "is there twice, as " + types_of(i - 1) + " and as " + types_of(i);
  }

  /// The tensor of that name, or nullptr.
  const decoded_tensor* find(std::string_view name) const noexcept {
    const auto found = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                        [](const decoded_tensor& t, std::string_view n) { return t.info.name < n; });
    return found != tensors_.end() && found->info.name == name ? &*found : nullptr;
  }

  /// All of them, sorted by name.
  const std::vector<decoded_tensor>& all() const noexcept { return tensors_; }

private:
  std::string types_of(std::size_t i) const { return detail::printable(tensors_[i].info.type_name(), 40); }

  std::vector<decoded_tensor> tensors_;
};

}  // namespace sluice::inline SLUICE_ISA
