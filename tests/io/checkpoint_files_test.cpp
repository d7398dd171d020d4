#include <sluice/io/checkpoint_files.hpp>

#include "checkpoint_folder.hpp"
#include "failing_allocation.hpp"
#include "index_cases.hpp"
#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <atomic>
#include <filesystem>
#include <map>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

using namespace sluice;
using test::contains;
using test::first_shard;
using test::index_name;
using test::second_shard;

namespace {

using content = std::map<std::string, std::string>;
const content three{{"a", "first"}, {"b", "second"}, {"c", "third"}};

void write_file(const std::filesystem::path& path, const std::string& text) {
  test::write_bytes(path, test::file_of_bytes({{"w", text}}));
}

}  // namespace

TEST_CASE("checkpoint_files: a folder of PyTorch's own files is told so", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / "config.json", "{}");
  test::write_bytes(folder / "pytorch_model-00001-of-00002.bin", "x");
  CHECK_THROWS_WITH(checkpoint_files(folder.path()),
                    contains("\"pytorch_model-00001-of-00002.bin\"") && contains("save the model as safetensors"));
}

TEST_CASE("checkpoint_files: shards are one table, sorted by name, that says which file each tensor is in", "[io]") {
  const test::temporary_folder folder;
  test::write_two_shards(folder.path());
  for (const std::filesystem::path& path : {folder.path(), folder / index_name}) {
    const checkpoint_files files(path);
    CHECK(test::content_of(files) == three);
    CHECK(test::is_consistent(files));
    REQUIRE(files.tensors().size() == 3);
    CHECK(files.tensors()[0].info.name == "a");
    CHECK(files.tensors()[1].info.name == "b");
    CHECK(files.tensors()[2].file == second_shard);
    CHECK(files.at("b").file == first_shard);
    CHECK(files.at("b").info.shape == std::vector<std::int64_t>{6});
    CHECK(files.files() == std::vector<std::string>{first_shard, second_shard});
    CHECK(files.folder() == folder.path());
    CHECK(files.name() == (folder / index_name).string());
    CHECK(files.bytes() == 16);
    CHECK(files.contains("c"));
    for (const char* name : {"", "aa", "d"}) CHECK(files.find(name) == nullptr);
    CHECK_THROWS_AS(files.at("d"), file_error);
    CHECK_THROWS_WITH(files.at("d"), contains(index_name) && contains("tensor \"d\"") && contains("not in the"));
  }
}

TEST_CASE("checkpoint_files: a single file is a checkpoint too, whatever its name", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / "saved", file_cases::reference_style_file());
  const checkpoint_files files(folder / "saved");
  CHECK(files.files() == std::vector<std::string>{"saved"});
  CHECK(files.folder() == folder.path());
  CHECK(files.metadata().at("system") == "mixtral");
  CHECK(files.at("x").file == "saved");
  CHECK(files.bytes() == 44);
  CHECK(test::is_consistent(files));
  CHECK_THROWS_WITH(files.at("y"), contains((folder / "saved").string()) && contains("tensor \"y\""));
}

TEST_CASE("checkpoint_files: metadata is that of the index, then that of the shards, without total_size", "[io]") {
  const test::temporary_folder folder;
  const auto shard = [](const std::string& metadata, const std::string& tensor) {
    return file_cases::file_of(
        R"({"__metadata__":{)" + metadata + "}," + file_cases::entry(tensor, "U8", "[1]", "[0,1]") + "}", 1);
  };
  test::write_bytes(folder / first_shard, shard(R"("format":"pt","origin":"x")", "a"));
  test::write_bytes(folder / second_shard, shard(R"("format":"tf","extra":"1")", "b"));
  test::write_bytes(folder / index_name, test::index_of({{"a", first_shard}, {"b", second_shard}}));
  CHECK(checkpoint_files(folder.path()).metadata() == content{{"origin", "test"}, {"format", "pt"}, {"extra", "1"}});
}

TEST_CASE("checkpoint_files: of a folder the index is taken, then model.safetensors, then the only file", "[io]") {
  const test::temporary_folder folder;
  write_file(folder / "weights.safetensors", "only");
  CHECK(test::content_of(folder.path()) == content{{"w", "only"}});
  test::write_bytes(folder / first_shard, "a shard of a save that was killed");
  test::write_bytes(folder / "config.json", "{}");
  CHECK(test::content_of(folder.path()) == content{{"w", "only"}});
  write_file(folder / "model.safetensors", "model");
  CHECK(test::content_of(folder.path()) == content{{"w", "model"}});
  test::write_two_shards(folder.path());
  CHECK(test::content_of(folder.path()) == three);
}

TEST_CASE("checkpoint_files: a shard that says it is one of one stands alone", "[io]") {
  const test::temporary_folder folder;
  write_file(folder / "part-00001-of-00001.safetensors", "whole");
  CHECK(test::content_of(folder.path()) == content{{"w", "whole"}});
}

TEST_CASE("checkpoint_files: a folder without a checkpoint is refused with what is in it", "[io]") {
  const test::temporary_folder folder;
  const auto open = [&folder] { return checkpoint_files(folder.path()); };
  CHECK_THROWS_WITH(open(), contains(folder.path().string()) && contains("but 0 .safetensors files"));
  write_file(folder / first_shard, "shards without an index");
  CHECK_THROWS_WITH(open(), contains("but 1 .safetensors files: \"" + first_shard + '"'));
  std::filesystem::remove(folder / first_shard);
  write_file(folder / "x.safetensors", "1");
  write_file(folder / "y.safetensors", "2");
  CHECK_THROWS_WITH(open(), contains("but 2 .safetensors files: \"x.safetensors\", \"y.safetensors\""));
  for (int i = 0; i < 30; ++i) write_file(folder / (std::to_string(i) + ".safetensors"), "");
  CHECK_THROWS_WITH(open(), contains("but 32 .safetensors files") && contains(", ..."));
  CHECK_THROWS_WITH(checkpoint_files(folder / "missing"), contains("missing"));
  CHECK_THROWS_AS(checkpoint_files(folder / "missing"), file_error);
}

TEST_CASE("checkpoint_files: a shard that is absent or damaged turns away who asks for its tensors, and nobody else",
          "[io]") {
  const test::temporary_folder folder;
  test::write_two_shards(folder.path());
  std::filesystem::remove(folder / second_shard);
  const auto check = [&folder](const std::string& reason) {
    const checkpoint_files files(folder.path());
    CHECK(test::content_of(files) == content{{"a", "first"}, {"b", "second"}});
    CHECK(test::is_consistent(files));
    CHECK(files.files() == std::vector<std::string>{first_shard});
    REQUIRE(files.missing().size() == 1);
    CHECK(files.missing()[0].name == "c");
    CHECK(files.missing()[0].file == second_shard);
    CHECK(files.find("c") == nullptr);
    CHECK_THROWS_AS(files.at("c"), file_error);
    CHECK_THROWS_WITH(files.at("c"), contains(index_name) && contains("tensor \"c\"") && contains(reason));
    CHECK_THAT(files.absence("d"), contains("is not in the checkpoint"));
  };
  check("by the index in \"" + second_shard + "\", which does not exist");
  test::write_bytes(folder / second_shard, "no header");
  check("\", which cannot be read: sluice: file \"" + (folder / second_shard).string());
}

TEST_CASE("checkpoint_files: the index selects which tensors there are and which shard each comes from", "[io]") {
  const test::temporary_folder folder;
  test::write_two_shards(folder.path());
  const auto open = [&folder](const std::vector<std::pair<std::string, std::string>>& weight_map) {
    test::write_bytes(folder / index_name, test::index_of(weight_map));
    checkpoint_files files(folder.path());
    CHECK(test::is_consistent(files));
    return files;
  };
  CHECK(test::content_of(open({{"a", first_shard}, {"c", second_shard}})) == content{{"a", "first"}, {"c", "third"}});

  const checkpoint_files absent =
      open({{"a", first_shard}, {"b", second_shard}, {"c", second_shard}, {"d", second_shard}});
  CHECK(test::content_of(absent) == content{{"a", "first"}, {"c", "third"}});
  REQUIRE(absent.missing().size() == 2);
  CHECK_THROWS_WITH(absent.at("b"), contains(index_name) && contains("tensor \"b\": is not in \"" + second_shard +
                                                                   "\", where the index has it"));

  test::write_bytes(folder / second_shard, test::file_of_bytes({{"c", "third"}, {"a", "twin"}}));
  CHECK(test::content_of(open({{"a", first_shard}, {"b", first_shard}, {"c", second_shard}})) == three);
  CHECK(test::content_of(open({{"a", second_shard}, {"b", first_shard}, {"c", second_shard}})) ==
        content{{"a", "twin"}, {"b", "second"}, {"c", "third"}});
}

TEST_CASE("checkpoint_files: a shard may have any plain name, but PyTorch's own files are not opened", "[io]") {
  const test::temporary_folder folder;
  write_file(folder / "9f1c0d", "text");
  test::write_bytes(folder / "pytorch_model.bin", "anything");
  test::write_bytes(folder / index_name, test::index_of({{"w", "9f1c0d"}, {"v", "pytorch_model.bin"}}));
  const checkpoint_files files(folder.path());
  CHECK(test::content_of(files) == content{{"w", "text"}});
  CHECK(files.at("w").file == "9f1c0d");
  CHECK_THROWS_WITH(files.at("v"), contains("pytorch_model.bin") && contains("save the model as safetensors"));
}

TEST_CASE("checkpoint_files: shards that no tensor is in are not opened, and an index of nothing is empty", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / index_name, test::index_of({}));
  test::write_bytes(folder / first_shard, "not asked for");
  const checkpoint_files files(folder.path());
  CHECK(files.tensors().empty());
  CHECK(files.files().empty());
  CHECK(files.bytes() == 0);
}

TEST_CASE("checkpoint_files: an index cannot lead out of its folder", "[io]") {
  const test::temporary_folder folder;
  std::filesystem::create_directory(folder / "inside");
  write_file(folder / "outside.safetensors", "secret");
  for (const std::string& name : {std::string("../outside.safetensors"), (folder / "outside.safetensors").string()}) {
    test::write_bytes(folder / "inside" / index_name, test::index_of({{"w", name}}));
    CHECK_THROWS_WITH(checkpoint_files(folder / "inside"),
                      contains("tensor \"w\"") && contains("not a plain file name"));
  }
}

TEST_CASE("checkpoint_files: a folder in the place of an index or a shard is refused", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / index_name, test::index_of({{"w", "x.safetensors"}}));
  std::filesystem::create_directory(folder / "x.safetensors");
  CHECK_THROWS_WITH(checkpoint_files(folder.path()).at("w"), contains("x.safetensors"));
  std::filesystem::remove(folder / index_name);
  std::filesystem::create_directory(folder / index_name);
  CHECK_THROWS_WITH(checkpoint_files(folder.path()), contains(index_name));
}

TEST_CASE("checkpoint_files: moved, it keeps its tensors where they are", "[io]") {
  STATIC_REQUIRE(!std::is_copy_constructible_v<checkpoint_files>);
  const test::temporary_folder folder;
  test::write_two_shards(folder.path());
  checkpoint_files opened(folder.path());
  const located_tensor& b = opened.at("b");
  const checkpoint_files moved(std::move(opened));
  CHECK(&moved.at("b") == &b);
  CHECK(b.file == first_shard);
  CHECK(test::content_of(moved) == three);
  checkpoint_files assigned(folder / first_shard);
  assigned = checkpoint_files(folder.path());
  CHECK(test::content_of(assigned) == three);
  CHECK(assigned.tensors()[2].file == second_shard);
}

TEST_CASE("checkpoint_files: many threads may ask at once", "[io]") {
  const test::temporary_folder folder;
  test::write_two_shards(folder.path());
  const checkpoint_files files(folder.path());
  std::atomic<int> wrong{0};
  std::vector<std::thread> readers;
  for (int t = 0; t < 4; ++t)
    readers.emplace_back([&] {
      for (int i = 0; i < 200; ++i)
        if (files.find("d") != nullptr || files.at("c").file != second_shard || !test::is_consistent(files)) ++wrong;
    });
  for (std::thread& reader : readers) reader.join();
  CHECK(wrong == 0);
}

#if defined(__unix__) || defined(__APPLE__)

TEST_CASE("checkpoint_files: a cache of links to files elsewhere is followed, a link to nowhere is not passed over",
          "[io]") {
  const test::temporary_folder folder;
  std::filesystem::create_directory(folder / "blobs");
  std::filesystem::create_directory(folder / "snapshot");
  test::write_two_shards(folder / "blobs");
  for (const std::string& name : {first_shard, second_shard, index_name})
    std::filesystem::create_symlink("../blobs/" + name, folder / "snapshot" / name);
  CHECK(test::content_of(folder / "snapshot") == three);
  CHECK(test::content_of(folder / "snapshot" / index_name) == three);

  write_file(folder / "snapshot" / "model.safetensors", "older");
  std::filesystem::remove(folder / "blobs" / index_name);
  CHECK_THROWS_WITH(checkpoint_files(folder / "snapshot"), contains(index_name) && contains("cannot be opened"));
}

TEST_CASE("checkpoint_files: a link to a shard may stand for it", "[io]") {
  const test::temporary_folder folder;
  test::write_two_shards(folder.path());
  std::filesystem::create_symlink(first_shard, folder / "twin.safetensors");
  test::write_bytes(folder / index_name,
                    test::index_of({{"a", first_shard}, {"b", "twin.safetensors"}, {"c", second_shard}}));
  CHECK(test::content_of(folder.path()) == three);
}

#endif

#if SLUICE_POSIX_FILES  // GCC 12's std::filesystem::directory_iterator cannot report it

TEST_CASE("checkpoint_files: memory that runs out anywhere while opening is reported and nothing is kept", "[io]") {
  const test::temporary_folder folder;
  const auto check = [&folder](const content& expected) {
    const long failures = test::fail_each_allocation([&] { const checkpoint_files files(folder.path()); }, [] {});
    CHECK(failures > 15);
    CHECK(test::content_of(folder.path()) == expected);
  };
  write_file(folder / "weights.safetensors", "only");
  check({{"w", "only"}});
  test::write_two_shards(folder.path());
  check(three);
}

TEST_CASE("checkpoint_files: refused or out of memory, it leaves no file open", "[io]") {
  if (!std::filesystem::exists("/proc/self/fd")) return;
  const auto open_files = [] { return detail::folder_names("/proc/self/fd").size(); };
  const test::temporary_folder folder;
  test::write_two_shards(folder.path());
  const std::size_t before = open_files();
  test::fail_each_allocation([&] { const checkpoint_files files(folder.path()); }, [] {});
  test::write_bytes(folder / second_shard, "broken");
  CHECK(checkpoint_files(folder.path()).missing().size() == 1);
  test::write_bytes(folder / index_name, "broken");
  CHECK_THROWS_AS(checkpoint_files(folder.path()), file_error);
  CHECK(open_files() == before);
}

#endif
