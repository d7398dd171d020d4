/// save and load: all parameters of a model in one safetensors file, by name.
///
///   sluice::save(layer, "layer.safetensors", {{"steps", "400"}});
///   sluice::load(layer, "layer.safetensors");
///
/// The model is anything whose parameters can be visited (core/parameter.hpp); float is stored as F32, double as F64,
/// sixteen-bit weights as BF16 or F16, row-major whatever their layout in memory. F16, BF16, F32 and F64 are loaded
/// into any, rounded to nearest where they have to be. Loading is strict: every parameter must be in the file, with its
/// shape and a floating-point type, and every tensor of the file must belong to a parameter or be named as ignored.
/// Otherwise one file_error lists what is missing, what differs (also finite numbers that would become infinite) and
/// what is left over. A load that throws has changed nothing. With a prefix, several models share a file: names become
/// "prefix.name", and other tensors are not looked at. Gradients are not stored.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/io/conversion_loss.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/name_pattern.hpp>
#include <sluice/io/safetensors_reader.hpp>
#include <sluice/io/safetensors_writer.hpp>
#include <sluice/io/tensor_info.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct load_options {
  std::string prefix = {};                // of the model's names in the file, without the dot that follows it
  std::vector<std::string> ignored = {};  // patterns of full names of tensors that may be left over
};

namespace detail {

/// Lines of one message, of which a hostile file cannot make millions.
class problem_list {
public:
  void add(std::string_view kind, std::string_view tensor, std::string_view reason = {}) {
    constexpr std::size_t most = 200;
    if (++count_ > most) return;
    text_ += "\n  ";
    text_ += kind;
    text_ += " \"" + printable(tensor) + '"';
    if (!reason.empty()) text_ += ": ";
    text_ += reason;
    if (count_ == most) text_ += "\n  (only the first " + std::to_string(most) + " are listed)";
  }

  std::size_t count() const noexcept { return count_; }
  const std::string& text() const noexcept { return text_; }

private:
  std::size_t count_ = 0;
  std::string text_;
};

/// A checked copy that is still to be made. It needs no memory, so that once copying has begun nothing can fail.
struct pending_copy {
  const tensor_info* from;
  void* to;
  void (*run)(const pending_copy&) noexcept;
};

/// f(first, numbers) for consecutive pieces of `count` numbers.
template <typename Scalar, typename F>
void for_each_piece(index_t count, F&& f) noexcept {
  std::array<Scalar, 1024> numbers;
  for (index_t first = 0; first < count; first += static_cast<index_t>(numbers.size()))
    f(first, std::span(numbers).first((std::min)(numbers.size(), static_cast<std::size_t>(count - first))));
}

template <typename Parameter>
pending_copy make_copy(const tensor_info& from, Parameter& to) {
  return {&from, &to, [](const pending_copy& c) noexcept {
            using scalar = typename Parameter::scalar;
            auto& p = *static_cast<Parameter*>(c.to);
            constexpr bool has_elements = requires { p.layout(); };
            if constexpr (has_elements && Parameter::is_trainable)
              if (p.layout().is_row_major()) {
                safetensors_reader::copy<scalar>(*c.from, p.value().first(static_cast<std::size_t>(p.size())));
                return;
              }
            if constexpr (has_elements)
              for_each_piece<scalar>(p.size(), [&](index_t first, std::span<scalar> piece) {
                safetensors_reader::copy<scalar>(*c.from, static_cast<std::size_t>(first), piece);
                for (std::size_t i = 0; i < piece.size(); ++i)
                  p.data()[p.place(first + static_cast<index_t>(i))] =
                      to_element<typename Parameter::element>(piece[i]);
              });
            else
              p.fill([&](index_t i) {
                scalar value;
                safetensors_reader::copy<scalar>(*c.from, static_cast<std::size_t>(i), std::span(&value, 1));
                return value;
              });
          }};
}

/// Elements first .. of a parameter in row-major order, as the file has them.
template <typename Parameter>
void read_parameter(const void* object, std::size_t first, std::span<std::byte> bytes) {
  using element = typename Parameter::element;
  const auto& p = *static_cast<const Parameter*>(object);
  for (std::size_t i = 0; i < bytes.size() / sizeof(element); ++i) {
    const element value = p.element_at(static_cast<index_t>(first + i));
    std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
  }
}

template <typename Element>
constexpr data_type file_type_of() {
  if constexpr (std::same_as<Element, bfloat16>)
    return data_type::bf16;
  else if constexpr (std::same_as<Element, float16>)
    return data_type::f16;
  else
    return data_type_of<Element>;
}

template <typename Parameter>
void add_parameter(safetensors_writer& file, const std::string& name, const Parameter& p) {
  file.add(name, std::vector<std::int64_t>(p.shape().begin(), p.shape().end()),
           file_type_of<typename Parameter::element>(), safetensors_writer::source{&p, &read_parameter<Parameter>});
}

}  // namespace detail

/// Adds all parameters of a model to a file that is being put together. The writer refers to them until it has saved.
template <typename Model>
void add_parameters(safetensors_writer& file, const Model& model, const std::string& prefix = {}) {
  static_assert(explain_model<Model>());
  for_each_parameter(
      model, [&file](const std::string& name, const auto& p) { detail::add_parameter(file, name, p); }, prefix);
}

namespace detail {

/// A strict load: what the model has is matched with what the file has, and nothing is copied before all of it fits.
class strict_load {
public:
  explicit strict_load(const safetensors_reader& file) : file_(file) {}

  /// The tensor of this name and shape; null if there is none, which finish will say.
  const tensor_info* find(const std::string& name, std::span<const index_t> shape) {
    if (!known_.insert(name).second) {
      problems_.add("ambiguous", name, "the model has two parameters of this name");
      return nullptr;
    }
    const tensor_info* const tensor = file_.find(name);
    if (tensor == nullptr) {
      problems_.add("missing", name, "the model needs shape " + shape_text(shape));
    } else if (!std::ranges::equal(tensor->shape, shape)) {
      problems_.add("different", name,
                    "shape is " + shape_text(tensor->shape) + ", the model needs " + shape_text(shape));
      return nullptr;
    }
    return tensor;
  }
  void refuse(const std::string& name, const std::string& reason) { problems_.add("different", name, reason); }

  /// The numbers of a tensor become those of a parameter.
  template <typename Parameter>
  void copy(const std::string& name, const tensor_info& tensor, Parameter& p) {
    using scalar = typename Parameter::scalar;
    using element = typename Parameter::element;
    const std::string obstacle = safetensors_reader::obstacle<scalar>(tensor, static_cast<std::size_t>(p.size()));
    if (!obstacle.empty()) {
      refuse(name, obstacle);
      return;
    }
    if constexpr (!std::same_as<scalar, element>) {
      conversion_loss loss;
      add_losses(tensor, 0, tensor.elements(), file_type_of<element>(), loss);
      if (loss.beyond > 0) refuse(name, beyond_text(loss, file_type_of<element>()));
    }
    if constexpr (requires { p.make_room(); }) p.make_room();
    copies_.push_back(make_copy(tensor, p));
  }

  /// Throws one file_error for all problems, or makes the copies.
  void finish(const load_options& options) {
    const std::string start = options.prefix.empty() ? std::string() : options.prefix + '.';
    for (const tensor_info& tensor : file_.tensors())
      if (tensor.name.starts_with(start) && !known_.contains(tensor.name) && !matches_any(options.ignored, tensor.name))
        problems_.add("left over", tensor.name, "no parameter of the model has this name");
    if (problems_.count() > 0)
      throw file_error(file_.file_name(), "does not fit the model, " + std::to_string(problems_.count()) +
                                              (problems_.count() == 1 ? " problem:" : " problems:") + problems_.text());
    for (const pending_copy& copy : copies_) copy.run(copy);
  }

private:
  const safetensors_reader& file_;
  problem_list problems_;
  std::set<std::string> known_;
  std::vector<pending_copy> copies_;
};

}  // namespace detail

/// Fills all parameters of a model from an open file, or throws one file_error and changes none.
template <typename Model>
void load_parameters(const safetensors_reader& file, Model& model, const load_options& options = {}) {
  static_assert(explain_model<Model>());
  detail::strict_load all(file);
  for_each_parameter(
      model,
      [&](const std::string& name, auto& p) {
        if (const tensor_info* const tensor = all.find(name, p.shape())) all.copy(name, *tensor, p);
      },
      options.prefix);
  all.finish(options);
}

/// Replaces the file, as a whole or not at all, by the parameters of the model.
template <typename Model>
void save(const Model& model, const std::filesystem::path& path,
          const std::map<std::string, std::string>& metadata = {}) {
  safetensors_writer file;
  for (const auto& [key, value] : metadata) file.metadata(key, value);
  add_parameters(file, model);
  file.save(path);
}

/// Fills the model from a file that save wrote, or any file with the same names and shapes.
template <typename Model>
void load(Model& model, const std::filesystem::path& path, const load_options& options = {}) {
  load_parameters(safetensors_reader(path), model, options);
}

}  // namespace sluice::inline SLUICE_ISA
