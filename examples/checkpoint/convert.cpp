#include <sluice/checkpoint/convert.hpp>

#include "commands.hpp"
#include "session.hpp"

namespace checkpoint {

void convert(const convert_options& o) {
  const sluice::checkpoint_model model(o.model, o.prefix);
  sluice::convert_options how;
  if (!o.dtype.empty()) how.type = data_type_of(o.dtype);
  how.layout = o.layout;
  how.shard_bytes = o.shard_bytes;
  work_bar bar(o.progress);
  how.progress = [](void* user, std::uint64_t done, std::uint64_t total) {
    static_cast<work_bar*>(user)->draw("writing", static_cast<double>(done), static_cast<double>(total));
  };
  how.user = &bar;
  const sluice::convert_report report = sluice::convert_checkpoint(model, o.target, how);
  const sluice::checkpoint_files written(o.target);
  std::cout << o.target << ": " << written.tensors().size() << " tensors, "
            << shared::fixed(static_cast<double>(written.bytes()) / 1e6, 2) << " MB in " << written.files().size()
            << (written.files().size() == 1 ? " file\n" : " files\n") << to_string(report.values) << '\n';
  if (report.kept.empty()) return;
  std::cout << report.kept.size() << (report.kept.size() == 1 ? " tensor" : " tensors")
            << " of state kept the type they had, " << sluice::detail::printable(report.kept.front())
            << (report.kept.size() == 1 ? "\n" : " the first\n");
}

}  // namespace checkpoint
