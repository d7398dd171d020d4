#include <sluice/io/checkpoint_writer.hpp>

#include <sluice/io/checkpoint_files.hpp>

#include "checkpoint_folder.hpp"
#include "child_process.hpp"
#include "failing_allocation.hpp"
#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

using namespace sluice;
using test::contains;
using test::content_of;
using test::first_shard;
using test::index_name;
using test::names_in;
using test::second_shard;

namespace {

using content = std::map<std::string, std::string>;
using names = std::set<std::string>;
const std::string single = "model.safetensors";

/// Saves tensors of bytes; a limit of 0 puts each into a shard of its own.
void save(const content& tensors, const std::filesystem::path& path, std::uint64_t shard_bytes) {
  checkpoint_writer writer;
  for (const auto& [name, text] : tensors)
    writer.add(name, {static_cast<std::int64_t>(text.size())}, data_type::u8, test::bytes_of(text));
  writer.save(path, {.shard_bytes = shard_bytes});
}

constexpr std::uint64_t sharded = 1;
constexpr std::uint64_t whole = 1'000'000'000;

const content old_tensors{{"a", "old 1"}, {"b", "old 2"}};
const content new_tensors{{"a", "new 1"}, {"b", "new 2"}, {"c", "new 3"}};

std::string shard_of(int number, int count, const std::string& generation = {}) {
  return "model-" + generation + "0000" + std::to_string(number) + "-of-0000" + std::to_string(count) + ".safetensors";
}

/// A folder in one of the states from which a save may start.
struct start {
  std::string name;
  void (*make)(const std::filesystem::path&);
  content tensors;  // what it holds; nothing if no checkpoint can be read
};

const std::vector<start> starts{
    {"empty", [](const std::filesystem::path&) {}, {}},
    {"one file", [](const std::filesystem::path& f) { save(old_tensors, f, whole); }, old_tensors},
    {"shards", [](const std::filesystem::path& f) { save(old_tensors, f, sharded); }, old_tensors},
    {"shards of generation 2",
     [](const std::filesystem::path& f) {
       save(new_tensors, f, sharded);
       save(old_tensors, f, sharded);
     },
     old_tensors},
    {"a file of another name",
     [](const std::filesystem::path& f) { save(old_tensors, f / "weights.safetensors", whole); }, old_tensors},
    {"shards without an index",
     [](const std::filesystem::path& f) {
       save(old_tensors, f, sharded);
       std::filesystem::remove(f / index_name);
     },
     {}},
    {"one file beside shards of a killed save",
     [](const std::filesystem::path& f) {
       save(old_tensors, f, whole);
       test::write_bytes(f / shard_of(1, 3), "half a shard");
     },
     old_tensors},
    {"shards above the file of a killed save",
     [](const std::filesystem::path& f) {
       save(old_tensors, f, sharded);
       save(new_tensors, f / single, whole);
     },
     old_tensors},
    {"an index whose shard is called model.safetensors",
     [](const std::filesystem::path& f) {
       save(old_tensors, f / single, whole);
       test::write_bytes(f / index_name, test::index_of({{"a", single}, {"b", single}}));
     },
     old_tensors},
    {"shards of names that others give",
     [](const std::filesystem::path& f) {
       save({{"a", "old 1"}}, f / "x.safetensors", whole);
       save({{"b", "old 2"}}, f / "y.safetensors", whole);
       test::write_bytes(f / index_name, test::index_of({{"a", "x.safetensors"}, {"b", "y.safetensors"}}));
     },
     old_tensors},
    {"a broken index",
     [](const std::filesystem::path& f) {
       save(old_tensors, f, sharded);
       test::write_bytes(f / index_name, "{");
     },
     {}},
};

/// What a reader makes of the folder, nothing if it refuses.
content read_or_nothing(const std::filesystem::path& folder) {
  try {
    return content_of(folder);
  } catch (const file_error&) {
    return {};
  }
}

}  // namespace

TEST_CASE("checkpoint_writer: what fits one shard is one file, the rest shards and an index", "[io]") {
  const test::temporary_folder folder;
  save(new_tensors, folder / "one", 15);
  CHECK(names_in(folder / "one") == names{single});
  CHECK(content_of(folder / "one") == new_tensors);
  save(new_tensors, folder / "two", 14);
  CHECK(names_in(folder / "two") == names{shard_of(1, 2), shard_of(2, 2), index_name});
  CHECK(content_of(folder / "two") == new_tensors);
  CHECK(checkpoint_files(folder / "two").at("b").file == shard_of(1, 2));
  save(new_tensors, folder / "three", 0);
  CHECK(names_in(folder / "three") == names{shard_of(1, 3), shard_of(2, 3), shard_of(3, 3), index_name});
  save({}, folder / "deep" / "none", sharded);
  CHECK(content_of(folder / "deep" / "none").empty());
  CHECK(names_in(folder / "deep" / "none") == names{single});
}

TEST_CASE("checkpoint_writer: a path that ends in .safetensors is one file of any size", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  save(new_tensors, folder / "x.safetensors", sharded);
  CHECK(names_in(folder.path()) == names{"x.safetensors"});
  CHECK(content_of(folder / "x.safetensors") == new_tensors);
}

TEST_CASE("checkpoint_writer: the index is as Python's json writes it, sorted, indented, escaped", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  save({{"z", "12"}, {"b\xC3\xBC\xF0\x9F\x90\x99\x7F\"", "345"}}, folder.path(), sharded);
  CHECK(test::read_bytes(folder / index_name) ==
        "{\n  \"metadata\": {\n    \"total_size\": 5\n  },\n  \"weight_map\": {\n"
        "    \"b\\u00fc\\ud83d\\udc19\\u007f\\\"\": \"model-00001-of-00002.safetensors\",\n"
        "    \"z\": \"model-00002-of-00002.safetensors\"\n  }\n}\n");
}

TEST_CASE("checkpoint_writer: shards are filled in the order of the calls, a larger tensor is alone", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  const std::vector<float> four(4);
  const std::vector<double> one(1);
  checkpoint_writer writer;
  writer.metadata("format", "pt");
  writer.add("d", {1}, one);                          // 8 bytes
  writer.add("c", {2, 1}, std::span(four).first(2));  // 8
  writer.add("large", {4}, four);                     // 16
  writer.add("b", {1}, one);
  writer.add("empty", {0, 7}, std::span(four).first(0));
  writer.add("a", {1}, one);
  writer.save(folder.path(), {.shard_bytes = 15});
  const checkpoint_files files(folder.path());
  const auto place = [&files](const char* name) { return files.at(name).file; };
  CHECK(files.files().size() == 5);
  CHECK(place("d") == shard_of(1, 5));
  CHECK(place("c") == shard_of(2, 5));
  CHECK(place("large") == shard_of(3, 5));
  CHECK(place("b") == shard_of(4, 5));
  CHECK(place("empty") == shard_of(4, 5));
  CHECK(place("a") == shard_of(5, 5));
  CHECK(files.metadata() == content{{"format", "pt"}});
  for (const std::string& file : files.files())
    CHECK(safetensors_reader(folder / file).metadata() == content{{"format", "pt"}});
  CHECK(files.bytes() == writer.data_bytes());

  const auto all_bytes = [](const std::filesystem::path& path) {
    content bytes;
    for (const std::string& name : names_in(path)) bytes[name] = test::read_bytes(path / name);
    return bytes;
  };
  writer.save(folder / "again", {.shard_bytes = 15});
  const content again = all_bytes(folder / "again");
  std::filesystem::remove_all(folder / "again");
  CHECK(again == all_bytes(folder.path()));
}

TEST_CASE("checkpoint_writer: tensors from a source are split too", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  const std::vector<std::int32_t> numbers{1, 2, 3};
  const auto negated = [](const void* object, std::size_t first, std::span<std::byte> bytes) {
    for (std::size_t i = 0; i < bytes.size() / 4; ++i) {
      const std::int32_t value = -(*static_cast<const std::vector<std::int32_t>*>(object))[first + i];
      std::memcpy(bytes.data() + 4 * i, &value, 4);
    }
  };
  checkpoint_writer writer;
  writer.add("a", {3}, data_type::i32, checkpoint_writer::source{&numbers, negated});
  writer.add("b", {3}, numbers);
  writer.save(folder.path(), {.shard_bytes = 12});
  CHECK(safetensors_reader(folder / first_shard).read_vector<std::int32_t>("a") ==
        std::vector<std::int32_t>{-1, -2, -3});
  CHECK(safetensors_reader(folder / second_shard).read_vector<std::int32_t>("b") == numbers);
}

TEST_CASE("checkpoint_writer: from every state of the folder a save leads to the new checkpoint and no leftovers",
          "[io]") {
  for (const start& from : starts)
    for (const std::uint64_t shard_bytes : {sharded, whole}) {
      CAPTURE(from.name, shard_bytes);
      const test::temporary_folder folder(test::memory_folder());
      test::write_bytes(folder / "config.json", "{}");
      from.make(folder.path());
      REQUIRE(read_or_nothing(folder.path()) == from.tensors);
      save(new_tensors, folder.path(), shard_bytes);
      CHECK(content_of(folder.path()) == new_tensors);
      const checkpoint_files files(folder.path());
      names expected(files.files().begin(), files.files().end());
      expected.insert("config.json");
      if (std::filesystem::exists(folder / "weights.safetensors")) expected.insert("weights.safetensors");
      if (files.name().ends_with(".json")) expected.insert(index_name);
      CHECK(names_in(folder.path()) == expected);
      CHECK((shard_bytes == sharded ? files.files().size() == 3 : files.files().size() == 1));
    }
}

TEST_CASE("checkpoint_writer: of a save that throws nothing is left, no folder either", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  const int nothing = 0;
  for (const std::uint64_t shard_bytes : {sharded, whole}) {
    checkpoint_writer writer;
    const std::vector<float> zeros(4);
    writer.add("a", {4}, zeros);
    writer.add("b", {4}, data_type::f32,
               checkpoint_writer::source{&nothing, [](const void*, std::size_t, std::span<std::byte>) {
                                           throw std::runtime_error("given up");
                                         }});
    CHECK_THROWS_WITH(writer.save(folder / "new", {.shard_bytes = shard_bytes}), "given up");
    CHECK(folder.file_count() == 0);
  }
}

TEST_CASE("checkpoint_writer: shards alternate between two sets of names", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  for (int i = 0; i < 4; ++i) {
    save(old_tensors, folder.path(), sharded);
    const std::string generation = i % 2 == 0 ? "" : "2-";
    CHECK(names_in(folder.path()) == names{shard_of(1, 2, generation), shard_of(2, 2, generation), index_name});
  }
}

TEST_CASE("checkpoint_writer: a single file does not overwrite a model.safetensors that the old index needs", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  save(old_tensors, folder / single, whole);
  test::write_bytes(folder / index_name, test::index_of({{"a", single}, {"b", single}}));
  save(new_tensors, folder.path(), whole);
  CHECK(names_in(folder.path()) == names{shard_of(1, 1), index_name});
  save(old_tensors, folder.path(), whole);
  CHECK(names_in(folder.path()) == names{single});
  CHECK(content_of(folder.path()) == old_tensors);
}

TEST_CASE("checkpoint_writer: files that the old index names are not removed unless they are called shards", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  test::write_bytes(folder / "notes.txt", "mine");
  test::write_bytes(folder / "old.safetensors", test::file_of_bytes({{"a", "old"}}));
  test::write_bytes(folder / index_name, test::index_of({{"a", "old.safetensors"}, {"b", "notes.txt"}}));
  save(new_tensors, folder.path(), whole);
  CHECK(names_in(folder.path()) == names{"notes.txt", single});
}

TEST_CASE("checkpoint_writer: a checkpoint may be saved onto itself, in every form", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  const std::string text(100'000, 'x');
  const std::string added = "new";
  save({{"a", text}, {"b", "old 2"}}, folder.path(), whole);
  const std::vector<std::uint64_t> limits{sharded, sharded, 200'000, 200'000, sharded};
  for (std::size_t i = 0; i < limits.size(); ++i) {
    CAPTURE(i);
    const checkpoint_files source(folder.path());
    checkpoint_writer writer;
    for (const located_tensor& tensor : source.tensors())
      writer.add(tensor.info.name, tensor.info.shape, tensor.info.dtype, tensor.info.bytes);
    writer.add(std::to_string(i), {3}, data_type::u8, test::bytes_of(added));
    writer.save(folder.path(), {.shard_bytes = limits[i]});
    const content got = content_of(folder.path());
    CHECK(got.size() == 3 + i);
    CHECK(got.at("a") == text);
    CHECK(got.at("b") == "old 2");
    CHECK(got.at(std::to_string(i)) == added);
    CHECK(content_of(source).at("a") == text);  // what is open stays open
  }
}

TEST_CASE("checkpoint_writer: a file in the way of the folder, or a folder in the way of a file, is named", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  test::write_bytes(folder / "file", "text");
  CHECK_THROWS_AS(save(new_tensors, folder / "file", whole), file_error);
  CHECK_THROWS_WITH(save(new_tensors, folder / "file", whole), contains((folder / "file").string()));
  CHECK_THROWS_WITH(save(new_tensors, folder / "file" / "below", whole), contains("cannot be created"));
  CHECK(test::read_bytes(folder / "file") == "text");

  std::filesystem::create_directories(folder / "m" / index_name / "x");
  CHECK_THROWS_WITH(save(new_tensors, folder / "m", sharded), contains(index_name));
  CHECK(names_in(folder / "m") == names{index_name});
  CHECK_THROWS_WITH(save(new_tensors, folder / "m", whole), contains(index_name) && contains("cannot be removed"));
}

TEST_CASE("checkpoint_writer: wrong arguments are refused as by safetensors_writer", "[io]") {
  checkpoint_writer writer;
  const std::vector<float> six(6);
  writer.add("w", {6}, six);
  CHECK_THROWS_AS(writer.add("w", {6}, six), std::invalid_argument);
  CHECK_THROWS_WITH(writer.add("v", {5}, six), contains("needs 20 bytes, is given 24"));
  CHECK(writer.names() == names{"w"});
}

#if SLUICE_POSIX_FILES  // GCC 12's std::filesystem::directory_iterator cannot report it

TEST_CASE("checkpoint_writer: memory that runs out anywhere leaves the old checkpoint and nothing else", "[io]") {
  for (const start& from : starts)
    for (const std::uint64_t shard_bytes : {sharded, whole}) {
      CAPTURE(from.name, shard_bytes);
      const test::temporary_folder folder(test::memory_folder());
      from.make(folder.path());
      const names before = names_in(folder.path());
      bool intact = true;
      bool tidy = true;
      const long failures = test::fail_each_allocation([&] { save(new_tensors, folder.path(), shard_bytes); },
                                                       [&] {
                                                         // model.safetensors below an index is whole, and not read: the commit has not come.
                                                         names now = names_in(folder.path());
                                                         if (now.contains(index_name) && !before.contains(single))
                                                           now.erase(single);
                                                         tidy = tidy && now == before;
                                                         intact =
                                                             intact && read_or_nothing(folder.path()) == from.tensors;
                                                       });
      CHECK(failures > 50);
      CHECK(intact);
      CHECK(tidy);
      CHECK(content_of(folder.path()) == new_tensors);
    }
}

#endif

#if SLUICE_TEST_HAS_FORK

TEST_CASE("checkpoint_writer: links are replaced or removed, what they lead to stays", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  std::filesystem::create_directory(folder / "blobs");
  std::filesystem::create_directory(folder / "snapshot");
  test::write_two_shards(folder / "blobs");
  const std::string first = test::read_bytes(folder / "blobs" / first_shard);
  for (const std::string& name : {first_shard, second_shard})
    std::filesystem::create_symlink("../blobs/" + name, folder / "snapshot" / name);
  std::filesystem::copy_file(folder / "blobs" / index_name, folder / "snapshot" / index_name);
  save(old_tensors, folder / "snapshot", sharded);
  CHECK(content_of(folder / "snapshot") == old_tensors);
  CHECK(names_in(folder / "snapshot") == names{shard_of(1, 2, "2-"), shard_of(2, 2, "2-"), index_name});
  CHECK(test::read_bytes(folder / "blobs" / first_shard) == first);
}

TEST_CASE("checkpoint_writer: a model.safetensors that leads to a shard is not written through", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  save({{"a", "old 1"}}, folder / "x.safetensors", whole);
  std::filesystem::create_symlink("x.safetensors", folder / single);
  test::write_bytes(folder / index_name, test::index_of({{"a", "x.safetensors"}}));
  save(new_tensors, folder.path(), whole);
  CHECK(content_of(folder.path()) == new_tensors);
  CHECK(names_in(folder.path()) == names{shard_of(1, 1), index_name});
}

TEST_CASE("checkpoint_writer: when the disk takes no more the old checkpoint stays and the new shards go", "[io]") {
  const test::temporary_folder folder(test::memory_folder());
  save(old_tensors, folder.path(), sharded);
  const names before = names_in(folder.path());
  const int code = test::exit_code_on_full_disk([&] {
    try {
      save({{"a", "small"}, {"b", std::string(100'000, 'x')}}, folder.path(), sharded);
    } catch (const file_error&) {
      return 0;
    }
    return 3;
  });
  CHECK(code == 0);
  CHECK(names_in(folder.path()) == before);
  CHECK(content_of(folder.path()) == old_tensors);
}

TEST_CASE("checkpoint_writer: a process killed at any moment leaves one whole checkpoint", "[io]") {
  // Saves go through every transition. All tensors of one checkpoint hold the same letter.
  const auto letters = [](char letter) {
    content tensors;
    for (const char* name : {"a", "b", "c"}) tensors[name] = std::string(20'000, letter);
    return tensors;
  };
  const test::temporary_folder folder(test::memory_folder());
  save(letters('a'), folder.path(), sharded);
  std::set<std::string> seen;
  // On a busy machine early kills meet a process that has not begun: later ones do not.
  for (int round = 0; round < 40 || (seen.size() < 2 && round < 400); ++round) {
    test::run_until_killed(std::chrono::microseconds(500 + 1730 * round), [&] {
      for (int i = round;; ++i) {
        const std::uint64_t limit = i % 3 == 0 ? whole : i % 3 == 1 ? 45'000 : sharded;
        save(letters(static_cast<char>('a' + i % 26)), folder.path(), limit);
      }
    });
    const content got = content_of(folder.path());
    REQUIRE(got.size() == 3);
    REQUIRE(got == letters(got.at("a").front()));
    seen.insert(names_in(folder.path()).contains(index_name) ? "shards" : "one file");
  }
  CHECK(seen.size() == 2);
  save(letters('z'), folder.path(), sharded);
  std::size_t files = 0;
  for (const std::string& name : names_in(folder.path())) files += name.ends_with(".safetensors") ? 1 : 0;
  CHECK(files == 3);  // leftovers of the killed are gone
}

#endif
