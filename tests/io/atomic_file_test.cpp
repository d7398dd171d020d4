#include <sluice/io/atomic_file.hpp>

#include "child_process.hpp"
#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

using namespace sluice;

namespace {

void replace(const std::filesystem::path& path, const std::string& bytes) {
  atomic_file file(path);
  file.write(test::bytes_of(bytes));
  file.commit();
}

}  // namespace

TEST_CASE("atomic_file: creates a file and replaces it", "[io]") {
  const test::temporary_folder folder;
  replace(folder / "file", "first");
  CHECK(test::read_bytes(folder / "file") == "first");
  replace(folder / "file", "");
  CHECK(test::read_bytes(folder / "file").empty());
  const std::string long_text(3'000'000, 'x');
  replace(folder / "file", long_text);
  CHECK(test::read_bytes(folder / "file") == long_text);
  CHECK(folder.file_count() == 1);
}

TEST_CASE("atomic_file: a bare name is a file of the current folder", "[io]") {
  const test::temporary_folder folder;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  replace("bare", "text");
  std::filesystem::current_path(before);
  CHECK(test::read_bytes(folder / "bare") == "text");
  CHECK(folder.file_count() == 1);
}

TEST_CASE("atomic_file: without commit the old file stays and nothing is left beside it", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / "file", "old");
  {
    atomic_file file(folder / "file");
    file.write(test::bytes_of("new"));
    CHECK(test::read_bytes(folder / "file") == "old");
    CHECK(folder.file_count() == 2);
  }
  CHECK(test::read_bytes(folder / "file") == "old");
  CHECK(folder.file_count() == 1);
}

TEST_CASE("atomic_file: a name as long as the file system allows is no problem", "[io]") {
  const test::temporary_folder folder;
  const std::string name(255, 'n');
  replace(folder / name, "text");
  CHECK(test::read_bytes(folder / name) == "text");
}

TEST_CASE("atomic_file: a missing folder, or a folder in the way, is named and nothing is left behind", "[io]") {
  const test::temporary_folder folder;
  const std::filesystem::path nowhere = folder / "missing" / "file";
  CHECK_THROWS_WITH(replace(nowhere, "text"), test::contains(nowhere.string()));
  std::filesystem::create_directory(folder / "in_the_way");
  CHECK_THROWS_AS(replace(folder / "in_the_way", "text"), file_error);
  CHECK_THROWS_WITH(replace(folder / "in_the_way", "text"), test::contains("in_the_way"));
  CHECK(std::filesystem::is_directory(folder / "in_the_way"));
  CHECK(folder.file_count() == 1);
}

TEST_CASE("atomic_file: writers of one file do not mix", "[io]") {
  const test::temporary_folder folder;
  std::vector<std::thread> writers;
  for (const char letter : {'a', 'b', 'c', 'd'})
    writers.emplace_back([&folder, letter] {
      for (int i = 0; i < 5; ++i) replace(folder / "file", std::string(100'000, letter));
    });
  for (std::thread& writer : writers) writer.join();
  const std::string got = test::read_bytes(folder / "file");
  REQUIRE(got.size() == 100'000);
  CHECK(got == std::string(100'000, got.front()));
  CHECK(folder.file_count() == 1);
}

#if SLUICE_TEST_HAS_FORK

TEST_CASE("atomic_file: the permissions of an existing file are kept", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / "file", "old");
  REQUIRE(::chmod((folder / "file").c_str(), 0600) == 0);
  replace(folder / "file", "new");
  struct stat status {};
  REQUIRE(::stat((folder / "file").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777U) == 0600);
}

TEST_CASE("atomic_file: a symbolic link stays a link, now to the new content", "[io]") {
  const test::temporary_folder folder;
  std::filesystem::create_directory(folder / "models");
  test::write_bytes(folder / "models" / "v1", "old");
  std::filesystem::create_symlink("models/v1", folder / "latest");
  replace(folder / "latest", "new");
  CHECK(std::filesystem::is_symlink(folder / "latest"));
  CHECK(test::read_bytes(folder / "models" / "v1") == "new");

  std::filesystem::create_symlink("models/missing", folder / "dangling");
  CHECK_THROWS_WITH(replace(folder / "dangling", "new"), test::contains("cannot be followed"));
}

TEST_CASE("atomic_file: when the disk takes no more the old file stays and the temporary goes", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / "file", "old");
  const int code = test::exit_code_on_full_disk([&] {
    try {
      replace(folder / "file", std::string(100'000, 'x'));
    } catch (const file_error& error) {
      return std::string(error.what()).find("cannot be written") != std::string::npos ? 0 : 3;
    }
    return 4;
  });
  CHECK(code == 0);
  CHECK(test::read_bytes(folder / "file") == "old");
  CHECK(folder.file_count() == 1);
}

TEST_CASE("atomic_file: a process killed between write and commit leaves the old file", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / "file", "old");
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    atomic_file file(folder / "file");
    file.write(test::bytes_of(std::string(100'000, 'x')));
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  CHECK(test::read_bytes(folder / "file") == "old");
  CHECK(folder.file_count() == 2);  // the temporary of a killed process stays
}

TEST_CASE("atomic_file: a process killed at any moment leaves a whole file, old or new", "[io]") {
  const test::temporary_folder folder;
  const std::size_t size = 500'000;
  replace(folder / "file", std::string(size, 'a'));
  for (int round = 0; round < 20; ++round) {
    test::run_until_killed(std::chrono::microseconds(1000 + 1370 * round), [&] {
      for (int i = 0;; ++i) replace(folder / "file", std::string(size, static_cast<char>('a' + i % 26)));
    });
    const std::string got = test::read_bytes(folder / "file");
    REQUIRE(got.size() == size);
    REQUIRE(got == std::string(size, got.front()));
  }
}

#endif
