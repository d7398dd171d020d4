/// Tensors of blocks that a checkpoint numbers, "<prefix>.0.<name>", "<prefix>.1.<name>", ...: read strictly.
///
///   numbered_tensors<float> blocks(files, "quantizer.vq.layers");
///   for (index_t j = 0; j < blocks.count(); ++j) blocks.read(j, "_codebook.embed", {C, D}, codes.data());
///   blocks.finish({"*.inited"});
///
/// What is absent, has another shape or a type that is no number, and what nobody read and no pattern names, is
/// collected; finish throws one file_error that lists it. Blocks are 0, 1, ... without a gap. F16, BF16, F32 and F64
/// are read. Other tensors of the checkpoint are not looked at.
#pragma once

#include <sluice/core/types.hpp>
#include <sluice/io/checkpoint_files.hpp>
#include <sluice/io/model_file.hpp>
#include <sluice/io/name_pattern.hpp>

#include <charconv>
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class numbered_tensors {
public:
  /// Throws file_error if the checkpoint has no block 0 of that prefix.
  numbered_tensors(const checkpoint_files& files, const std::string& prefix) : files_(files), prefix_(prefix + '.') {
    std::set<index_t> numbers;
    for (const located_tensor& tensor : files.tensors())
      if (const index_t number = number_of(tensor.info.name); number >= 0) numbers.insert(number);
    while (numbers.contains(count_)) ++count_;
    if (count_ == 0) throw file_error(files.name(), "has no tensors \"" + detail::printable(prefix_) + "0.*\"");
  }

  index_t count() const noexcept { return count_; }
  std::string full_name(index_t block, std::string_view name) const {
    return prefix_ + std::to_string(block) + '.' + std::string(name);
  }
  bool has(index_t block, std::string_view name) const { return files_.contains(full_name(block, name)); }

  /// An extent of a tensor; 0, and a problem, if it is not there or has fewer axes.
  index_t extent(index_t block, std::string_view name, std::size_t axis) {
    const std::string full = full_name(block, name);
    const located_tensor* const tensor = files_.find(full);
    if (tensor != nullptr && axis < tensor->info.shape.size()) return tensor->info.shape[axis];
    problems_.add(tensor == nullptr ? "missing" : "different", full, tensor == nullptr ? "" : "it has too few axes");
    return 0;
  }

  /// Copies the tensor, if it is there with this shape.
  void read(index_t block, std::string_view name, const std::vector<std::int64_t>& shape, Scalar* to) {
    const std::string full = full_name(block, name);
    const located_tensor* const tensor = files_.find(full);
    if (tensor == nullptr) {
      problems_.add("missing", full);
      return;
    }
    used_.insert(full);
    if (tensor->info.shape != shape) {
      problems_.add("different", full,
                    "it is " + detail::shape_text(tensor->info.shape) + ", not " + detail::shape_text(shape));
      return;
    }
    const std::span<Scalar> out(to, tensor->info.elements());
    const std::string obstacle = safetensors_reader::obstacle<Scalar>(tensor->info, out.size());
    if (obstacle.empty())
      safetensors_reader::copy<Scalar>(tensor->info, out);
    else
      problems_.add("different", full, obstacle);
  }
  std::vector<Scalar> read(index_t block, std::string_view name, const std::vector<std::int64_t>& shape) {
    std::size_t count = 1;
    for (const std::int64_t extent : shape) count *= static_cast<std::size_t>(extent);
    std::vector<Scalar> numbers(count);
    read(block, name, shape, numbers.data());
    return numbers;
  }

  /// A problem of the caller's.
  void add_problem(index_t block, std::string_view name, const std::string& reason) {
    problems_.add("different", full_name(block, name), reason);
  }

  /// Throws file_error if there was a problem, or if a tensor below the prefix was not read and fits no pattern.
  void finish(const std::vector<std::string>& ignored = {}) {
    for (const located_tensor& tensor : files_.tensors())
      if (tensor.info.name.starts_with(prefix_) && !used_.contains(tensor.info.name) &&
          !matches_any(ignored, tensor.info.name))
        problems_.add("left over", tensor.info.name);
    throw_problems();
  }
  /// Throws file_error if there was a problem so far.
  void throw_problems() const {
    if (problems_.count() > 0)
      throw file_error(files_.name(), "does not fit a quantiser, " + std::to_string(problems_.count()) +
                                          (problems_.count() == 1 ? " problem:" : " problems:") + problems_.text());
  }

private:
  /// The block that a tensor belongs to, or -1.
  index_t number_of(std::string_view name) const {
    if (!name.starts_with(prefix_)) return -1;
    name.remove_prefix(prefix_.size());
    index_t number = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
    const bool is_number = error == std::errc() && end != name.data() + name.size() && *end == '.';
    return is_number ? number : -1;
  }

  const checkpoint_files& files_;
  std::string prefix_;
  index_t count_ = 0;
  std::set<std::string> used_;
  detail::problem_list problems_;
};

}  // namespace sluice::inline SLUICE_ISA
