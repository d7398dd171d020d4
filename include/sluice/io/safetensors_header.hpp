/// header_events: reads the JSON header of a safetensors file event by event and refuses what has no place in it.
///
///   {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {"key": "text"}}
///
/// Refused with a file_error: text that is not JSON in UTF-8; anything nested deeper or elsewhere than the format has
/// it; metadata and fields given twice; unknown fields; fields that are missing; numbers that are negative, fractional
/// or too large; more than 64 dimensions. Whether the numbers fit the file, and whether a tensor is listed twice, is
/// for parse_safetensors (safetensors_contents.hpp) to decide. A dtype that is unknown is no error: whoever reads the
/// tensor decides.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/json_text.hpp>
#include <sluice/io/tensor_info.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// One tensor as the header describes it, before its range is believed.
struct tensor_entry {
  std::string name;
  std::optional<data_type> dtype;
  std::string other_type = {};
  std::optional<std::vector<std::int64_t>> shape;
  std::optional<std::vector<std::uint64_t>> offsets;
};

/// Receives the JSON events of a header; any event the format has no place for is refused at once, so nesting is
/// bounded by the format itself. (The return type and the argument types are those that nlohmann::json::sax_parse asks
/// for.)
class header_events : public json_handler {
public:
  explicit header_events(const std::string& file) : json_handler(file, "header") {}

  std::vector<tensor_entry> tensors;
  std::map<std::string, std::string> metadata;

  bool null() { unexpected("null"); }
  bool boolean(bool) { unexpected("a boolean"); }
  bool number_float(double, const std::string& text) { unexpected("the number " + printable(written(text), 40)); }
  bool binary(nlohmann::json::binary_t&) { unexpected("binary data"); }
  // Literals with a minus sign arrive here, and -0 is no index either.
  bool number_integer(std::int64_t value) { unexpected("the negative number " + std::to_string(value)); }

  bool number_unsigned(std::uint64_t value) {
    if (place_ == place::shape) {
      if (value > static_cast<std::uint64_t>((std::numeric_limits<std::int64_t>::max)()))
        refuse("extent " + std::to_string(value) + " exceeds 63 bits");
      if (tensors.back().shape->size() == most_dimensions)
        refuse("has more than " + std::to_string(most_dimensions) + " dimensions");
      tensors.back().shape->push_back(static_cast<std::int64_t>(value));
    } else if (place_ == place::offsets) {
      if (tensors.back().offsets->size() == 2) refuse("data_offsets has more than two numbers");
      tensors.back().offsets->push_back(value);
    } else {
      unexpected("the number " + std::to_string(value));
    }
    return true;
  }

  bool string(std::string& value) {
    if (place_ == place::metadata) {
      metadata[metadata_entry_] = std::move(value);
    } else if (place_ == place::tensor && field_ == field::dtype) {
      tensors.back().dtype = parse_data_type(value).value_or(data_type::other);
      if (tensors.back().dtype == data_type::other) tensors.back().other_type = std::move(value);
    } else {
      unexpected("the string \"" + printable(value) + "\"");
    }
    return true;
  }

  bool key(std::string& name) {
    if (place_ == place::root) {
      in_metadata_ = name == metadata_key;
      if (in_metadata_ && std::exchange(metadata_seen_, true)) throw file_error(file(), "__metadata__ is given twice");
      if (!in_metadata_) tensors.push_back({std::move(name), {}, {}, {}, {}});
    } else if (place_ == place::metadata) {
      if (metadata.contains(name)) throw file_error(file(), "metadata key \"" + printable(name) + "\" is given twice");
      metadata_entry_ = std::move(name);
    } else {
      tensor_entry& tensor = tensors.back();
      if (name == "dtype")
        field_ = field::dtype;
      else if (name == "shape")
        field_ = field::shape;
      else if (name == "data_offsets")
        field_ = field::offsets;
      else
        refuse("unknown field \"" + printable(name) + "\"");
      if ((field_ == field::dtype && tensor.dtype) || (field_ == field::shape && tensor.shape) ||
          (field_ == field::offsets && tensor.offsets))
        refuse("field \"" + name + "\" is given twice");
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (place_ == place::document)
      place_ = place::root;
    else if (place_ == place::root)
      place_ = in_metadata_ ? place::metadata : place::tensor;
    else
      unexpected("an object");
    return true;
  }

  bool end_object() {
    if (place_ == place::tensor) {
      const tensor_entry& tensor = tensors.back();
      if (!tensor.dtype) refuse("has no dtype");
      if (!tensor.shape) refuse("has no shape");
      if (!tensor.offsets) refuse("has no data_offsets");
    }
    place_ = place_ == place::root ? place::document : place::root;
    return true;
  }

  bool start_array(std::size_t) {
    if (place_ == place::tensor && field_ == field::shape) {
      place_ = place::shape;
      tensors.back().shape.emplace();
    } else if (place_ == place::tensor && field_ == field::offsets) {
      place_ = place::offsets;
      tensors.back().offsets.emplace();
    } else {
      unexpected("an array");
    }
    return true;
  }

  bool end_array() {
    if (place_ == place::offsets && tensors.back().offsets->size() != 2)
      refuse("data_offsets needs two numbers, has " + std::to_string(tensors.back().offsets->size()));
    place_ = place::tensor;
    return true;
  }

private:
  enum class place { document, root, metadata, tensor, shape, offsets };
  enum class field { dtype, shape, offsets };

  [[noreturn]] void refuse(const std::string& reason) const { throw file_error(file(), tensors.back().name, reason); }

  [[noreturn]] void unexpected(const std::string& what) const {
    switch (place_) {
      case place::document:
        throw file_error(file(), "header must be a JSON object, is " + what);
      case place::root:
        if (in_metadata_) throw file_error(file(), "__metadata__ must be an object, is " + what);
        refuse("must be described by an object, not " + what);
      case place::metadata:
        throw file_error(file(), "metadata \"" + printable(metadata_entry_) + "\" must be a string, is " + what);
      case place::tensor:
        refuse(std::string(field_ == field::dtype   ? "dtype must be a string"
                           : field_ == field::shape ? "shape must be an array"
                                                    : "data_offsets must be an array") +
               ", is " + what);
      case place::shape:
        refuse("shape must hold non-negative integers, has " + what);
      case place::offsets:
        break;
    }
    refuse("data_offsets must hold non-negative integers, has " + what);
  }

  place place_ = place::document;
  field field_ = field::dtype;
  bool in_metadata_ = false;
  bool metadata_seen_ = false;
  std::string metadata_entry_;
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
