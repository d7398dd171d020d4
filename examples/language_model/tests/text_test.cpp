// How the program reads text and cuts it into windows.
#include "text.hpp"

#include "shared/testing.hpp"

using namespace language_model;

namespace {

std::string digits(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += static_cast<char>('0' + i % 10);
  return text;
}

}  // namespace

TEST_CASE("language_model: the last tenth of a file is for validation", "[language_model]") {
  const shared::testing::temporary_folder folder("lm_file");
  const corpus c = read_corpus(folder.file_with("t.txt", digits(95)), 4);
  CHECK(c.training == digits(86));
  CHECK(c.training + c.validation == digits(95));
}

TEST_CASE("language_model: every tenth file of a folder is for validation", "[language_model]") {
  const shared::testing::temporary_folder folder("lm_folder");
  std::string training;
  std::filesystem::create_directory(folder.file("b"));
  for (int i = 0; i < 11; ++i) {
    const std::string name = (i < 6 ? "a" : "b/c") + std::to_string(100 + i);
    folder.file_with(name, "<" + name + ">");
    if (i != 9) training += "<" + name + ">";
  }
  folder.file_with("empty", "");
  const corpus c = read_corpus(folder.file(""), 4);
  CHECK(c.training == training);
  CHECK(c.validation == "<b/c109>");
}

TEST_CASE("language_model: text without a window is refused", "[language_model]") {
  const shared::testing::temporary_folder folder("lm_short");
  const auto message = [](const std::string& path, index_t length) {
    return shared::testing::message_of([&] { read_corpus(path, length); });
  };
  const std::string file = folder.file_with("t.txt", digits(50));
  CHECK(message(file, 4) == "(nothing was thrown)");
  CHECK(message(file, 5) == file + ": too short: 45 bytes to learn from and 5 for validation, where a window takes 6");
  CHECK(message(folder.file("absent"), 4).find("absent: cannot open") != std::string::npos);
}

TEST_CASE("language_model: windows are pieces of the text, and next is one byte on", "[language_model]") {
  const std::string text = digits(40) + "\xff";
  batch b, again;
  const sluice::random_source random(3);
  draw_batch(text, 500, 7, random, b);
  draw_batch(text, 500, 7, random, again);
  CHECK(b.ids == again.ids);
  draw_batch(text, 500, 7, random.at_step(1), again);
  CHECK(b.ids != again.ids);
  REQUIRE(b.ids.size() == 3500);
  REQUIRE(b.borders.size() == 501);
  CHECK(b.borders[500] == 3500);
  bool sees_first = false, sees_last = false;
  for (std::size_t w = 0; w < 500; ++w) {
    CHECK(b.borders[w] == static_cast<index_t>(7 * w));
    for (std::size_t i = 7 * w; i < 7 * w + 7; ++i)
      CHECK(b.next[i] == (b.ids[i] == '9' && b.next[i] == 255 ? 255 : b.ids[i] == '9' ? '0' : b.ids[i] + 1));
    sees_first |= b.ids[7 * w] == '0';
    sees_last |= b.next[7 * w + 6] == 255;
  }
  CHECK(sees_first);
  CHECK(sees_last);
}

TEST_CASE("language_model: windows for validation lie evenly and do not overlap", "[language_model]") {
  CHECK(window_starts(41, 10, 100) == std::vector<std::size_t>{0, 10, 20, 30});
  CHECK(window_starts(40, 10, 100) == std::vector<std::size_t>{0, 10, 20});  // the last byte has no next one
  CHECK(window_starts(101, 10, 4) == std::vector<std::size_t>{0, 20, 50, 70});
}
