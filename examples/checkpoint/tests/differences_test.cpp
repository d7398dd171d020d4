#include "differences.hpp"

#include <sluice/io/safetensors_writer.hpp>

#include "../../shared/testing.hpp"

using namespace checkpoint;

namespace {

void write(const std::string& path, const std::vector<float>& numbers, const std::string& name = "y") {
  sluice::safetensors_writer file;
  file.add(name, {1, static_cast<std::int64_t>(numbers.size())}, numbers);
  file.save(path);
}

std::vector<tensor_difference> compared(const std::string& a, const std::string& b) {
  return differences(sluice::safetensors_reader(a), sluice::safetensors_reader(b));
}

}  // namespace

TEST_CASE("differences: largest, mean and relative", "[checkpoint]") {
  const shared::testing::temporary_folder folder("differences");
  write(folder.file("a"), {1, -4, 2, 0});
  write(folder.file("b"), {1, -3.5f, 2.25f, 0});
  const auto d = compared(folder.file("a"), folder.file("b")).at(0).found;
  CHECK(d.largest == 0.5);
  CHECK(d.where == 1);
  CHECK(d.mean() == 0.75 / 4);
  CHECK(d.relative() == 0.125);
}

TEST_CASE("differences: NaN and infinities", "[checkpoint]") {
  const float nan = sluice::quiet_nan<float>(), inf = static_cast<float>(infinite);
  const shared::testing::temporary_folder folder("differences");
  write(folder.file("a"), {nan, inf, 1});
  write(folder.file("b"), {nan, inf, 1});
  const auto equal = compared(folder.file("a"), folder.file("b")).at(0).found;
  CHECK(equal.largest == 0);
  CHECK(equal.both_nan == 1);
  write(folder.file("c"), {nan, inf, nan});
  const auto apart = compared(folder.file("a"), folder.file("c")).at(0).found;
  CHECK_FALSE(is_finite(apart.largest));
  CHECK(apart.one_nan == 1);
  CHECK(apart.where == 2);
}

TEST_CASE("differences: tensors that are missing or of another shape are errors", "[checkpoint]") {
  const shared::testing::temporary_folder folder("differences");
  write(folder.file("a"), {1, 2});
  write(folder.file("b"), {1, 2}, "z");
  write(folder.file("c"), {1, 2, 3});
  const auto message = [&](const char* other) {
    return shared::testing::message_of<sluice::file_error>([&] { compared(folder.file("a"), folder.file(other)); });
  };
  CHECK(message("b").find("\"y\": is missing") != std::string::npos);
  CHECK(message("c").find("[1, 3]") != std::string::npos);
  CHECK(message("c").find("[1, 2]") != std::string::npos);
}
