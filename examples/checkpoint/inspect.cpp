#include <sluice/checkpoint/load_layer.hpp>

#include <nlohmann/json.hpp>

#include <iostream>
#include <map>
#include <set>

#include "../shared/text.hpp"
#include "commands.hpp"
#include "text_table.hpp"

namespace checkpoint {
namespace {

/// Tensors of one block that differ by the number of an expert only.
struct tensor_group {
  std::vector<std::int64_t> shape;
  std::set<std::string> types;  // experts may differ
  std::uint64_t count = 0, bytes = 0, elements = 0;
};

struct block_summary {
  std::string name, layout;
  std::map<std::string, tensor_group> tensors;
  std::uint64_t bytes = 0, parameters = 0, active = 0;
  std::set<std::string> types;
};

std::string joined(const std::set<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : "+") + word;
  return out.empty() ? "-" : out;
}

/// "experts.12.up" -> "experts.{}.up"; a number at the end of a name counts as well.
std::string without_expert(const std::string& name) {
  const auto at = name.find("expert");
  if (at == std::string::npos) return name;
  for (std::size_t i = at; i < name.size(); ++i) {
    const bool begins = std::isdigit(static_cast<unsigned char>(name[i])) &&
                        (name[i - 1] == '.' || name[i - 1] == '_' || name.compare(i - 1, 1, "t") == 0);
    if (!begins) continue;
    std::size_t end = i;
    while (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end]))) ++end;
    if (end == name.size() || name[end] == '.') return name.substr(0, i) + "{}" + name.substr(end);
  }
  return name;
}

/// "4.5"
std::string bits_of(const tensor_group& group) {
  return group.elements == 0
             ? ""
             : shared::fixed(8 * static_cast<double>(group.bytes) / static_cast<double>(group.elements), 2);
}

block_summary summary_of(const sluice::checkpoint_model& model, const sluice::block_id& block) {
  const sluice::tensor_names names = model.names(block);
  const sluice::model_config& config = model.config();
  block_summary s;
  s.name = to_string(block);
  s.layout = std::string(names.layout().name);
  const auto table = names.place_of("router.rule.table", config.vocabulary, config.top_k);
  std::uint64_t in_experts = 0, in_table = 0;
  for (const sluice::decoded_tensor& tensor : model.tensors().all()) {
    if (!names.owns(tensor.info.name)) continue;
    if (table && tensor.info.name == table->tensor) in_table = tensor.info.elements();
    const std::string name = tensor.info.name.substr(names.prefix().size());
    tensor_group& group = s.tensors[without_expert(name)];
    group.shape = tensor.info.shape;
    const std::string type = sluice::detail::printable(tensor.info.type_name(), 40);
    group.types.insert(type);
    ++group.count;
    group.bytes += tensor.bytes;
    group.elements += tensor.info.elements();
    s.bytes += tensor.bytes;
    s.parameters += tensor.info.elements();
    s.types.insert(type);
  }
  for (const std::string_view part : names.layout().parts()) {
    if (model.tensors().find(names.layout().place(names.prefix(), 0, part, names.extent()).tensor) == nullptr) continue;
    const auto [rows, cols] = sluice::expert_layout::extent_of(part, names.extent());
    in_experts += static_cast<std::uint64_t>(rows * cols);
  }
  const auto k = static_cast<std::uint64_t>(config.top_k);
  const std::uint64_t all_experts = in_experts * static_cast<std::uint64_t>(config.experts);
  if (s.parameters >= all_experts + in_table) {
    s.active = s.parameters - all_experts - in_table + in_experts * k;
    if (in_table > 0) s.active += k;  // the row of the token's id
  }
  return s;
}

std::string megabytes(std::uint64_t bytes) { return shared::fixed(static_cast<double>(bytes) / 1e6, 2); }

nlohmann::ordered_json to_json(const sluice::checkpoint_model& model, const std::vector<block_summary>& blocks) {
  const sluice::model_config& c = model.config();
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const block_summary& s : blocks) {
    nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
    for (const auto& [name, group] : s.tensors)
      tensors.push_back({{"name", name},
                         {"shape", group.shape},
                         {"type", joined(group.types)},
                         {"bits_a_weight", bits_of(group)},
                         {"count", group.count},
                         {"bytes", group.bytes}});
    layers.push_back({{"layer", s.name},
                      {"layout", s.layout},
                      {"parameters", s.parameters},
                      {"active_parameters_a_token", s.active},
                      {"bytes", s.bytes},
                      {"tensors", std::move(tensors)}});
  }
  return {{"model", model.name()},
          {"family", name_of(c.family)},
          {"model_type", c.model_type},
          {"quantization", c.quantization},
          {"width", c.inputs},
          {"hidden", c.hidden},
          {"experts", c.experts},
          {"experts_a_token", c.top_k},
          {"shared_hidden", c.shared_hidden},
          {"blocks", c.layers + c.decoder_layers},
          {"files", model.files().files()},
          {"tensors", model.files().tensors().size()},
          {"missing_tensors", model.files().missing().size()},
          {"bytes", model.files().bytes()},
          {"layers", std::move(layers)}};
}

}  // namespace

void inspect(const inspect_options& o) {
  const sluice::checkpoint_model model(o.model, o.prefix);
  const sluice::model_config& c = model.config();
  std::vector<block_summary> blocks;
  for (const sluice::block_id& block : model.blocks()) blocks.push_back(summary_of(model, block));
  if (o.json) {
    std::cout << to_json(model, blocks).dump(2) << '\n';
    return;
  }

  std::uint64_t parameters = 0, active = 0;
  for (const block_summary& s : blocks) parameters += s.parameters, active += s.active;
  std::cout << model.name() << ": " << c.model_type << " (" << name_of(c.family) << "), "
            << model.files().files().size() << (model.files().files().size() == 1 ? " file, " : " files, ")
            << model.files().tensors().size() << " tensors, " << megabytes(model.files().bytes()) << " MB\n"
            << blocks.size() << " of " << c.layers + c.decoder_layers << " blocks are mixtures: " << c.experts
            << " experts, " << c.top_k << " a token, width " << c.inputs << ", hidden " << c.hidden;
  if (c.shared_hidden > 0) std::cout << ", shared expert " << c.shared_hidden;
  if (const auto& missing = model.files().missing(); !missing.empty())
    std::cout << "\nnot there, of the tensors in the index: " << missing.size() << "; the first, \""
              << sluice::detail::printable(missing.front().name) << "\", "
              << model.files().absence(missing.front().name);
  if (!c.quantization.empty()) std::cout << "\nquantised by " << c.quantization;
  std::cout << "\nparameters in mixtures: " << shared::grouped(static_cast<std::int64_t>(parameters))
            << ", active a token: " << shared::grouped(static_cast<std::int64_t>(active)) << "\n\n";

  std::vector<std::vector<std::string>> rows{
      {"layer", "layout", "types", "tensors", "MB", "parameters", "active a token"}};
  for (const block_summary& s : blocks) {
    std::uint64_t count = 0;
    for (const auto& [name, group] : s.tensors) count += group.count;
    rows.push_back({s.name, s.layout, joined(s.types), std::to_string(count), megabytes(s.bytes),
                    shared::grouped(static_cast<std::int64_t>(s.parameters)),
                    shared::grouped(static_cast<std::int64_t>(s.active))});
  }
  print_aligned(std::cout, rows);
  if (blocks.empty()) return;

  const block_summary& first = blocks.front();
  std::cout << "\ntensors of " << first.name << ":\n";
  rows = {{"name", "shape", "type", "bits a weight", "count", "MB"}};
  for (const auto& [name, group] : first.tensors)
    rows.push_back({name, sluice::detail::shape_text(group.shape), joined(group.types), bits_of(group),
                    std::to_string(group.count), megabytes(group.bytes)});
  if (rows.size() == 1)
    std::cout << "none: the config says that this block is a mixture, the files have nothing of it\n";
  else
    print_aligned(std::cout, rows);
}

}  // namespace checkpoint
