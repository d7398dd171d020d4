// Damaged and hostile checkpoints on disk: whatever is opened is refused with a file_error or is a consistent table.
#include <sluice/io/checkpoint_files.hpp>

#include "checkpoint_folder.hpp"
#include "index_cases.hpp"
#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

using namespace sluice;
using test::contains;
using test::first_shard;
using test::index_name;
using test::second_shard;

namespace {

/// The message that the checkpoint or the first tensor that it lacks is refused with, or ""; accepted, it must be
/// consistent. Any other exception fails.
std::string complaint_about(const std::filesystem::path& path) {
  try {
    const checkpoint_files files(path);
    if (!test::is_consistent(files)) return "a table that is not consistent";
    if (!files.missing().empty()) files.at(files.missing().front().name);
    return "";
  } catch (const file_error& error) {
    return error.what();
  }
}

/// Two shards, the first large enough that its header and its body span several pages.
void write_large(const std::filesystem::path& folder) {
  std::vector<std::pair<std::string, std::string>> tensors;
  std::vector<std::pair<std::string, std::string>> weight_map{{"last", second_shard}};
  for (int i = 0; i < 8; ++i) {
    tensors.emplace_back("layer." + std::to_string(i), std::string(1000 + static_cast<std::size_t>(i), 'x'));
    weight_map.emplace_back(tensors.back().first, first_shard);
  }
  test::write_bytes(folder / first_shard, test::file_of_bytes(tensors));
  test::write_bytes(folder / second_shard, test::file_of_bytes({{"last", "third"}}));
  test::write_bytes(folder / index_name, test::index_of(weight_map));
}

std::size_t header_size(const std::string& bytes) {
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  return 8 + static_cast<std::size_t>(length);
}

/// Calls f(i) with each byte i of the file changed to something else: all its bits, then one bit at a time.
template <typename F>
void with_each_flip(const std::filesystem::path& path, std::size_t count, F f) {
  const std::string bytes = test::read_bytes(path);
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  const auto put = [&file](std::size_t i, int byte) {
    file.seekp(static_cast<std::streamoff>(i)).put(static_cast<char>(byte)).flush();
    REQUIRE(file.good());
  };
  for (std::size_t i = 0; i < count; ++i) {
    for (const int flip : {0xFF, 1, 2, 4, 8, 16, 32, 64, 128}) {
      put(i, bytes[i] ^ flip);
      f(i);
    }
    put(i, bytes[i]);
  }
}

}  // namespace

TEST_CASE("checkpoint robustness: a shard cut in its header or anywhere in its body is refused", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  write_large(folder.path());
  REQUIRE(complaint_about(folder.path()) == "");
  const std::string whole = test::read_bytes(folder / first_shard);
  const std::size_t header = header_size(whole);
  std::vector<std::size_t> lengths;
  for (std::size_t length = 0; length <= header; ++length) lengths.push_back(length);
  std::mt19937_64 random(20240607);
  for (int i = 0; i < 1000; ++i) lengths.push_back(header + random() % (whole.size() - header));
  std::sort(lengths.begin(), lengths.end(), std::greater<>());
  for (const std::size_t length : lengths) {
    std::filesystem::resize_file(folder / first_shard, length);
    CAPTURE(length);
    REQUIRE_THAT(complaint_about(folder.path()), contains(first_shard));
    REQUIRE_THAT(complaint_about(folder / first_shard), contains(first_shard));
  }
}

TEST_CASE("checkpoint robustness: a flipped bit in a header is refused or gives a consistent table", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  test::write_two_shards(folder.path());
  int alone = 0;
  int indexed = 0;
  with_each_flip(folder / first_shard, header_size(test::read_bytes(folder / first_shard)), [&](std::size_t i) {
    CAPTURE(i);
    if (complaint_about(folder / first_shard).empty()) ++alone;
    if (complaint_about(folder.path()).empty()) ++indexed;
  });
  CHECK(alone > 0);     // another name or type
  CHECK(indexed >= 0);  // what counts is that each was refused or consistent
  CHECK(indexed < alone);
  CHECK(complaint_about(folder.path()) == "");
}

TEST_CASE("checkpoint robustness: a flipped bit in an index is refused or gives a consistent table", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  test::write_two_shards(folder.path());
  const std::size_t size = test::read_bytes(folder / index_name).size();
  int accepted = 0;
  int refused = 0;
  with_each_flip(folder / index_name, size, [&](std::size_t i) {
    CAPTURE(i);
    (complaint_about(folder.path()).empty() ? accepted : refused) += 1;
  });
  CHECK(accepted > 0);  // other metadata
  CHECK(refused > 1000);
}

TEST_CASE("checkpoint robustness: every malformed safetensors file is refused as a shard, by its name", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  test::write_two_shards(folder.path());
  for (const file_cases::file_case& c : file_cases::malformed_files()) {  // overflows, overlaps, duplicates, ...
    test::write_bytes(folder / second_shard, c.bytes);
    CAPTURE(c.name);
    const std::string complaint = complaint_about(folder.path());
    CHECK_THAT(complaint, contains(second_shard));
    for (const std::string& part : c.complaint) CHECK_THAT(complaint, contains(part));
  }
}

TEST_CASE("checkpoint robustness: every malformed index is refused, by its name", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  test::write_two_shards(folder.path());
  for (const file_cases::file_case& c : file_cases::malformed_indices()) {
    test::write_bytes(folder / index_name, c.bytes);
    CAPTURE(c.name);
    const std::string complaint = complaint_about(folder.path());
    CHECK_THAT(complaint, contains(index_name));
    for (const std::string& part : c.complaint) CHECK_THAT(complaint, contains(part));
  }
}

TEST_CASE("checkpoint robustness: a kilobyte that claims 4 GB is refused, in the header's length and in a tensor",
          "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  const std::filesystem::path path = folder / "x.safetensors";
  const std::string padding(1000, ' ');
  test::write_bytes(path, file_cases::little_endian(0xFFFFFFFF) + "{}" + padding);
  CHECK_THAT(complaint_about(path), contains("header length 4294967295"));
  test::write_bytes(
      path, file_cases::file_of("{" + file_cases::entry("w", "F32", "[1073741824]", "[0,4294967296]") + "}" + padding));
  CHECK_THAT(complaint_about(path), contains("tensor \"w\"") && contains("leave the data section of 0 bytes"));
  test::write_bytes(
      path, file_cases::file_of("{" + file_cases::entry("w", "F32", "[1073741824]", "[0,8]") + "}" + padding, 8));
  CHECK_THAT(complaint_about(path), contains("needs 4294967296 bytes"));
}

TEST_CASE("checkpoint robustness: an index of a hundred thousand tensors that are not there is a short message each",
          "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  test::write_two_shards(folder.path());
  std::string entries;
  for (int i = 0; i < 100'000; ++i)
    entries += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":\"" + std::to_string(i) + ".safetensors\"";
  test::write_bytes(folder / index_name, file_cases::index_of(entries));
  const std::string complaint = complaint_about(folder.path());
  CHECK_THAT(complaint, contains("does not exist"));
  CHECK(complaint.size() < 500);
}
