#include <sluice/io/folder.hpp>

#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <filesystem>
#include <set>
#include <string>

using namespace sluice;

TEST_CASE("folder_names: everything in a folder, whatever it is", "[io]") {
  const test::temporary_folder folder;
  CHECK(detail::folder_names(folder.path()).empty());
  test::write_bytes(folder / "file", "");
  test::write_bytes(folder / ".hidden", "");
  std::filesystem::create_directory(folder / "..below");
  test::write_bytes(folder / "..below" / "deeper", "");
  CHECK(detail::folder_names(folder.path()) == std::set<std::string>{"file", ".hidden", "..below"});
}

TEST_CASE("folder_names: what cannot be listed is named", "[io]") {
  const test::temporary_folder folder;
  test::write_bytes(folder / "file", "");
  CHECK_THROWS_AS(detail::folder_names(folder / "file"), file_error);
  CHECK_THROWS_WITH(detail::folder_names(folder / "missing"),
                    test::contains((folder / "missing").string()) && test::contains("cannot be listed"));
}

TEST_CASE("folder_flusher: flushes a folder, also the current one, and not what is no folder", "[io]") {
  const test::temporary_folder folder;
  CHECK(detail::folder_flusher(folder.path()).flush() == 0);
  CHECK(detail::folder_flusher("").flush() == 0);
  CHECK(detail::folder_flusher(folder / "missing").flush() == 0);
}
