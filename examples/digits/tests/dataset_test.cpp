#include "dataset.hpp"  // first: proves that the header stands alone

#include <map>

#include "support.hpp"

using namespace digits;
using digits::test::message_of;

namespace {

/// A line whose 64 pixels are `pixel` and whose class is `label`.
std::string line(int pixel, int label) {
  std::string text;
  for (int i = 0; i < pixels_per_image; ++i) text += std::to_string(pixel) + ",";
  return text + std::to_string(label);
}

std::string with_field(int column, const std::string& field) {
  std::string text;
  for (int c = 1; c <= 65; ++c) text += (c > 1 ? "," : "") + (c == column ? field : std::string("3"));
  return text;
}

std::string damage(const std::string& text) {
  const test::temporary_folder folder("dataset");
  const std::string file = folder.file_with("d.csv", text);
  const std::string message = message_of([&] { read_dataset(file); });
  CHECK(message.find('\n') == std::string::npos);
  return message.starts_with(file) ? message.substr(file.size()) : message;
}

const std::string four_lines = line(0, 0) + "\n" + line(16, 1) + "\n" + line(8, 2) + "\n" + line(4, 3) + "\n";

}  // namespace

TEST_CASE("dataset: the project's file has 1348 training and 449 test images of ten classes", "[digits][dataset]") {
  const dataset data = read_dataset(SLUICE_EXAMPLE_DATA "/digits.csv");
  CHECK(data.train.size() == 1348);
  CHECK(data.test.size() == 449);
  CHECK(data.train.pixels.rows() == 1348);
  CHECK(data.test.pixels.rows() == 449);
  CHECK(data.train.pixels.cols() == 64);
  CHECK(data.train.pixels.minCoeff() == 0.0f);
  CHECK(data.train.pixels.maxCoeff() == 1.0f);
  std::map<int, int> seen;
  for (const int label : data.train.labels) ++seen[label];
  CHECK(seen.size() == 10);
  // The first and the fourth line of the file: class 0, whose third pixel is 5, and class 3 as the first test image.
  CHECK(data.train.labels.front() == 0);
  CHECK(data.train.pixels(0, 2) == 5.0f / 16.0f);
  CHECK(data.test.labels.front() == 3);
}

TEST_CASE("dataset: every fourth image tests", "[digits][dataset]") {
  const test::temporary_folder folder("dataset");
  const dataset data = read_dataset(folder.file_with("d.csv", four_lines + line(1, 4) + "\n"));
  CHECK(data.train.labels == std::vector<int>{0, 1, 2, 4});
  CHECK(data.test.labels == std::vector<int>{3});
  CHECK(data.train.pixels(1, 63) == 1.0f);
  CHECK(data.test.pixels(0, 0) == 0.25f);
}

TEST_CASE("dataset: line ends may be CRLF, and the last may be missing", "[digits][dataset]") {
  std::string windows;
  for (const char c : four_lines) windows += c == '\n' ? std::string("\r\n") : std::string(1, c);
  const test::temporary_folder folder("dataset");
  CHECK(read_dataset(folder.file_with("crlf.csv", windows)).train.labels == std::vector<int>{0, 1, 2});
  CHECK(read_dataset(folder.file_with("end.csv", four_lines.substr(0, four_lines.size() - 1))).test.size() == 1);
  CHECK(read_dataset(folder.file_with("r.csv", windows.substr(0, windows.size() - 1))).test.size() == 1);
}

TEST_CASE("dataset: damage is named with line, column and text", "[digits][dataset]") {
  const std::string ok = line(0, 0) + "\n";
  CHECK(damage("") == ": the file is empty");
  CHECK(damage("\n") == ":1: the line is empty");
  CHECK(damage(four_lines + "\n") == ":5: the line is empty");
  CHECK(damage(ok + "\r\n" + ok) == ":2: the line is empty");
  CHECK(damage(ok + "1,2,3\n") == ":2: the line ends after column 3 of 65");
  CHECK(damage(four_lines.substr(0, four_lines.size() - 3)) == ":4: the line ends after column 64 of 65");
  CHECK(damage(line(0, 0) + ",7\n") == ":1: text after the last column, 65: '7'");
  CHECK(damage(line(0, 0) + ",\n") == ":1: text after the last column, 65: ''");
  CHECK(damage(ok + with_field(9, "17")) == ":2, column 9: '17' is not a pixel (a whole number from 0 to 16)");
  CHECK(damage(with_field(65, "10")) == ":1, column 65: '10' is not a class (a whole number from 0 to 9)");
  CHECK(damage(with_field(1, "pixel0")) == ":1, column 1: 'pixel0' is not a pixel (a whole number from 0 to 16)");
  for (const std::string bad : {"", " 3", "3 ", "-1", "+1", "1.5", "1e1", "0x1", "nan", "99999999999999999999"})
    CHECK(damage(with_field(5, bad)) == ":1, column 5: '" + bad + "' is not a pixel (a whole number from 0 to 16)");
  CHECK(damage(with_field(64, std::string("1\0", 2))) ==
        ":1, column 64: '1\\x00' is not a pixel (a whole number from 0 to 16)");
  CHECK(damage(std::string(5000, '\0')).starts_with(":1, column 1: '\\x00\\x00"));
  CHECK(damage("\xEF\xBB\xBF" + four_lines).starts_with(":1, column 1: '\\xEF\\xBB\\xBF0' is not"));
  CHECK(damage(std::string(5000, '7')).size() < 120);
  CHECK(damage(ok + ok + ok) == ": 3 images; every fourth one tests, so at least 4 are needed");
}

TEST_CASE("dataset: a file that cannot be read is an error", "[digits][dataset]") {
  const test::temporary_folder folder("dataset");
  const std::string missing = folder.file("missing.csv");
  CHECK(message_of([&] { read_dataset(missing); }) == missing + ": cannot open the file");
  CHECK(message_of([&] { read_dataset(folder.file("")); }).starts_with(folder.file("")));
}

TEST_CASE("dataset: patches are cut in reading order and every pixel is in one", "[digits][dataset]") {
  labelled_images images;
  images.labels = {0, 1};
  images.pixels.resize(2, 64);
  for (int i = 0; i < 128; ++i) images.pixels.data()[i] = static_cast<float>(i);
  row_matrix tokens;

  cut_into_tokens(images, {1, 0}, patch_shape::square, tokens);
  REQUIRE(tokens.rows() == 32);
  REQUIRE(tokens.cols() == 4);
  // Second patch of the second image: columns 2 and 3 of the rows 0 and 1, that is pixels 2, 3, 10 and 11.
  CHECK(tokens.row(1) == Eigen::RowVector4f(65.5f, 66.5f, 73.5f, 74.5f));
  CHECK(tokens.row(16 + 15) == Eigen::RowVector4f(53.5f, 54.5f, 61.5f, 62.5f));
  CHECK(tokens.sum() == 127 * 128 / 2 - 64);

  cut_into_tokens(images, {0}, patch_shape::row, tokens);
  REQUIRE(tokens.rows() == 8);
  REQUIRE(tokens.cols() == 8);
  CHECK(tokens(3, 5) == 8 * 3 + 5 - 0.5f);
}
