/// save_packed and load_packed: a model whose weights in codes lie in the file as they lie in memory, so that loading
/// is mapping.
///
///   sluice::save_packed(layer, "layer.packed");
///   sluice::load_packed(layer, "layer.packed");     // milliseconds, whatever its size; pages are read when used
///
/// It is a safetensors file. Weights in codes are tensors of a type of their own, "int4_blocks.L16": the name of the
/// storage or of its format, and the lanes of its panels, shape [outputs, inputs], as many bytes as the panels of that
/// shape take. Everything else is as save writes it. Panels are not copied: the matrices read the mapping, which
/// processes share, and keep it alive; who writes to one gets memory of its own. Where a map chooses its storage at run
/// time (mixed_storage) the file decides, if the storage is in the list. A model is quickest to make if the first of
/// its list is a storage of codes: that takes no memory before it is set.
///
/// Loading is as strict as load is, and reads the same plain tensors (rounded where the storage rounds). Panels for
/// another number of lanes, of another instruction set that is, are refused, as are formats that the model does not
/// know; any bytes are numbers, so that panels themselves need no check. A storage that has a state is not written.
#pragma once

#include <sluice/io/model_file.hpp>
#include <sluice/kernel/encoded_matrix.hpp>
#include <sluice/kernel/mixed_map.hpp>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// The name of a storage, or of the format that it stores; the layout of panels is part of what it means.
template <typename Storage>
constexpr std::string_view packed_name() {
  if constexpr (requires { std::string_view(Storage::name); })
    return Storage::name;
  else if constexpr (requires { std::string_view(Storage::format::name); })
    return Storage::format::name;
  else
    return {};
}
template <typename Storage>
constexpr bool can_be_packed() {
  static_assert(!std::is_empty_v<Storage> || !packed_name<Storage>().empty(),
                "sluice: a storage without elements, or its format, needs a static constexpr std::string_view name to "
                "be written to packed files");
  return std::is_empty_v<Storage>;
}
template <typename Storage>
std::string packed_type() {
  return std::string(packed_name<Storage>()) + ".L" + std::to_string(kernel::simd_width<typename Storage::scalar>);
}

template <typename T>
struct storage_of_matrix;
template <typename Storage>
struct storage_of_matrix<encoded_matrix<Storage>> {
  using type = Storage;
};
template <typename P>
inline constexpr bool is_encoded = false;
template <typename Storage>
inline constexpr bool is_encoded<encoded_matrix<Storage>> = can_be_packed<Storage>();

/// for_each_parameter, but a map whose storage is chosen at run time is shown as such.
template <typename Object, typename F>
void for_each_stored(Object& object, F&& f, const std::string& prefix) {
  if constexpr (is_parameter<Object> || requires { typename Object::storages; })
    f(prefix, object);
  else if constexpr (HasParameters<Object>)
    Object::visit_parameters(
        object, [&](std::string_view name, auto& part) { for_each_stored(part, f, joined_name(prefix, name)); });
}

/// A matrix or map that will read panels of the file, or become what has been read already.
struct pending_panels {
  const std::byte* panels;
  std::shared_ptr<void> read;
  void* to;
  void (*run)(const pending_panels&, const std::shared_ptr<const void>& file);
};

/// The matrix reads panels of the file; a copy, where a file of other origin has them where scales could not be read.
template <typename Storage>
void take_panels(encoded_matrix<Storage>& w, const pending_panels& p, const std::shared_ptr<const void>& file) {
  w.borrow(p.panels, file);
  if (reinterpret_cast<std::uintptr_t>(p.panels) % alignof(float) != 0) w.make_room();
}

/// Panels of the file for a matrix of this storage; null, with the reason, if they are not.
template <typename Storage>
const std::byte* panels_of(const tensor_info& tensor, index_t outputs, index_t inputs, std::string& reason) {
  constexpr index_t lanes = kernel::simd_width<typename Storage::scalar>;
  const index_t bytes = checked_product((outputs + lanes - 1) / lanes, panel_bytes<Storage>(inputs));
  if (tensor.bytes.size() != as_size(bytes)) {
    reason = "holds " + std::to_string(tensor.bytes.size()) + " bytes, panels of " + shape_text(tensor.shape) +
             " take " + std::to_string(bytes);
    return nullptr;
  }
  return tensor.bytes.data();
}

/// Why a tensor of another type cannot become weights; `known` are the types that could.
inline std::string other_type_text(const tensor_info& tensor, const std::vector<std::string>& known) {
  const std::string type = printable(tensor.type_name(), 40);
  for (const std::string& one : known)
    if (tensor.other_type.starts_with(one.substr(0, one.rfind('L') + 1)))
      return "is " + type + ", panels for another instruction set than this program's, which has " + one +
             ": save it again with a program built as this one is";
  std::string text = "is " + type + ", the model reads plain numbers";
  for (const std::string& one : known) text += ", " + one;
  return text;
}

/// What load_packed has found for the maps of a model.
class packed_load {
public:
  packed_load(std::shared_ptr<const safetensors_reader> file) : file_(std::move(file)), all_(*file_) {}

  template <typename Storage>
  void operator()(const std::string& name, encoded_matrix<Storage>& w) {
    const tensor_info* const tensor = all_.find(name, w.shape());
    if (tensor == nullptr) return;
    if (tensor->dtype != data_type::other || tensor->decoder != nullptr) return all_.copy(name, *tensor, w);
    if constexpr (can_be_packed<Storage>())
      if (tensor->other_type == packed_type<Storage>())
        return borrow<Storage>(name, *tensor, w.rows(), w.cols(), &w, [](const pending_panels& p, const auto& file) {
          take_panels(*static_cast<encoded_matrix<Storage>*>(p.to), p, file);
        });
    std::vector<std::string> known;
    if constexpr (can_be_packed<Storage>()) known.push_back(packed_type<Storage>());
    all_.refuse(name, other_type_text(*tensor, known));
  }
  template <typename... Storages>
  void operator()(const std::string& name, linear_map<mixed_storage<Storages...>>& map) {
    const std::array<index_t, 2> shape{map.outputs(), map.inputs()};
    const tensor_info* const tensor = all_.find(name, shape);
    if (tensor == nullptr) return;
    std::vector<std::string> known;
    bool is_taken = false;
    (take<Storages>(name, *tensor, map, known, is_taken), ...);
    if (is_taken) return;
    if (tensor->dtype == data_type::other && tensor->decoder == nullptr)
      all_.refuse(name, other_type_text(*tensor, known));
    else
      map.visit([&](auto& one) { all_.copy(name, *tensor, one.weight()); });
  }
  template <typename Scalar, typename Element>
  void operator()(const std::string& name, parameter<Scalar, Element>& p) {
    if (const tensor_info* const tensor = all_.find(name, p.shape())) all_.copy(name, *tensor, p);
  }

  void finish(const load_options& options) {
    all_.finish(options);
    for (const pending_panels& one : pending_) one.run(one, file_);
  }

private:
  template <typename Storage, typename Run>
  void borrow(const std::string& name, const tensor_info& tensor, index_t outputs, index_t inputs, void* to, Run run) {
    std::string reason;
    if (const std::byte* const panels = panels_of<Storage>(tensor, outputs, inputs, reason))
      pending_.push_back({panels, nullptr, to, run});
    else
      all_.refuse(name, reason);
  }
  template <typename Storage, typename Map>
  void take(const std::string& name, const tensor_info& tensor, Map& map, std::vector<std::string>& known,
            bool& is_taken) {
    if constexpr (requires { typename Storage::element; }) {
      if (is_taken || tensor.dtype != file_type_of<typename Storage::element>()) return;
      is_taken = true;
      const auto fresh = std::make_shared<linear_map<Storage>>(map.outputs(), map.inputs());
      all_.copy(name, tensor, fresh->weight());
      pending_.push_back({nullptr, fresh, &map, [](const pending_panels& p, const auto&) {
                            *static_cast<Map*>(p.to) = std::move(*static_cast<linear_map<Storage>*>(p.read.get()));
                          }});
    } else if constexpr (can_be_packed<Storage>()) {
      known.push_back(packed_type<Storage>());
      if (is_taken || tensor.dtype != data_type::other || tensor.other_type != known.back()) return;
      is_taken = true;
      borrow<Storage>(name, tensor, map.outputs(), map.inputs(), &map, [](const pending_panels& p, const auto& file) {
        auto& chosen = *static_cast<Map*>(p.to);
        linear_map<Storage> fresh(chosen.outputs(), chosen.inputs());
        take_panels(fresh.weight(), p, file);
        chosen = std::move(fresh);
      });
    }
  }

  std::shared_ptr<const safetensors_reader> file_;
  strict_load all_;
  std::vector<pending_panels> pending_;
};

}  // namespace detail

/// Adds all parameters of a model to a file that is being put together, weights in codes as panels.
template <HasParameters Model>
void add_packed(safetensors_writer& file, const Model& model, const std::string& prefix = {}) {
  for_each_parameter(
      model,
      [&file](const std::string& name, const auto& p) {
        using parameter_type = std::remove_cvref_t<decltype(p)>;
        if constexpr (detail::is_encoded<parameter_type>) {
          if (p.size() > 0 && p.data() == nullptr) throw_invalid("nobody has set the parameter \"", name, "\"");
          file.add(tensor_info{
              .name = name,
              .dtype = data_type::other,
              .shape = {p.shape().begin(), p.shape().end()},
              .bytes = p.value(),
              .other_type = detail::packed_type<typename detail::storage_of_matrix<parameter_type>::type>()});
        } else {
          detail::add_parameter(file, name, p);
        }
      },
      prefix);
}

/// Replaces the file, as a whole or not at all, by the parameters of the model.
template <HasParameters Model>
void save_packed(const Model& model, const std::filesystem::path& path,
                 const std::map<std::string, std::string>& metadata = {}) {
  safetensors_writer file;
  for (const auto& [key, value] : metadata) file.metadata(key, value);
  add_packed(file, model);
  file.save(path);
}

/// Fills the model from an open file, which stays open as long as matrices read it.
template <HasParameters Model>
void load_packed(Model& model, std::shared_ptr<const safetensors_reader> file, const load_options& options = {}) {
  detail::packed_load all(std::move(file));
  detail::for_each_stored(model, all, options.prefix);
  all.finish(options);
}
template <HasParameters Model>
void load_packed(Model& model, const std::filesystem::path& path, const load_options& options = {}) {
  load_packed(model, std::make_shared<const safetensors_reader>(path), options);
}

}  // namespace sluice::inline SLUICE_ISA
