#include <sluice/io/mapped_file.hpp>

#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <filesystem>
#include <string>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/stat.h>
#endif

using namespace sluice;

namespace {

std::string bytes_of(const mapped_file& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

}  // namespace

TEST_CASE("mapped_file: holds the bytes of the file, also those after a NUL and on the next pages", "[io]") {
  const test::temporary_folder folder;
  std::string bytes(10'000, '\0');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 7 % 251);
  test::write_bytes(folder / "file", bytes);
  CHECK(bytes_of(mapped_file(folder / "file")) == bytes);
}

TEST_CASE("mapped_file: an empty file is an empty span", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / "empty", "");
  CHECK(mapped_file(folder / "empty").bytes().empty());
  CHECK(mapped_file().bytes().empty());
}

TEST_CASE("mapped_file: moving hands the bytes over without moving them", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / "a", "first");
  test::write_bytes(folder / "b", "second");
  mapped_file a(folder / "a");
  const std::byte* const where = a.bytes().data();
  mapped_file b(std::move(a));
  CHECK(b.bytes().data() == where);
  CHECK(bytes_of(b) == "first");
  CHECK(a.bytes().empty());
  b = mapped_file(folder / "b");
  CHECK(bytes_of(b) == "second");
}

TEST_CASE("mapped_file: what is not a readable regular file is refused by name", "[io]") {
  const test::temporary_folder folder;
  const std::filesystem::path missing = folder / "missing";
  CHECK_THROWS_WITH(mapped_file(missing), test::contains(missing.string()));
  CHECK_THROWS_WITH(mapped_file(folder.path()), test::contains("not a regular file"));
  CHECK_THROWS_AS(mapped_file(missing), file_error);
}

#if defined(__unix__) || defined(__APPLE__)
TEST_CASE("mapped_file: a pipe is refused and not waited for", "[io]") {
  const test::temporary_folder folder;
  const std::filesystem::path pipe = folder / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK_THROWS_WITH(mapped_file(pipe), test::contains("not a regular file"));
}
#endif
