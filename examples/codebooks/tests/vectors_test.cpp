// How the program reads vectors.
#include "vectors.hpp"

#include "../../shared/testing.hpp"

using namespace codebooks;

namespace {

vectors read(const std::string& file, index_t patch = 2) { return read_vectors(file, false, patch); }

}  // namespace

TEST_CASE("codebooks: a CSV is a vector a line", "[codebooks]") {
  const shared::testing::temporary_folder folder("codebooks_csv");
  std::string text;
  for (int i = 0; i < 8; ++i) text += std::to_string(i) + ", -1.5e1,0.25\r\n";
  const vectors v = read(folder.file_with("v.csv", text));
  REQUIRE(v.rows.rows() == 8);
  CHECK(v.rows(7, 0) == 7);
  CHECK(v.rows(7, 1) == -15);
  CHECK(v.side == 0);
  const auto message = [&](const std::string& wrong) {
    return shared::testing::message_of([&] { read(folder.file_with("w.csv", wrong)); });
  };
  CHECK(message("1,2\n3,x\n").find("w.csv:2: 'x' is not a number") != std::string::npos);
  CHECK(message("1,2\n3\n").find("w.csv:2: 1 numbers, the first line has 2") != std::string::npos);
  CHECK(message("1,2\n\n").find("the line is empty") != std::string::npos);
  CHECK(message("1,2\n").find("at least 8 are needed") != std::string::npos);
  CHECK(message("1\n2\n3\n4\n5\n6\n7\ninf\n").find("infinite") != std::string::npos);
}

TEST_CASE("codebooks: a picture is cut into squares", "[codebooks]") {
  const shared::testing::temporary_folder folder("codebooks_picture");
  std::string pixels;
  for (int i = 0; i < 9 * 5 * 3; ++i) pixels += static_cast<char>(i);
  const vectors v = read(folder.file_with("p.ppm", "P6 # a comment\n9 5\n255\n" + pixels));
  REQUIRE(v.rows.rows() == 4 * 2);  // what is left at the edges is cut off
  REQUIRE(v.rows.cols() == 12);
  CHECK(v.side == 2);
  CHECK(v.channels == 3);
  // The second square of the second row of squares: its lower right pixel is at row 3, column 3.
  CHECK(v.rows(5, 9) == static_cast<float>((3 * 9 + 3) * 3) / 255);
  const auto message = [&](const std::string& wrong) {
    return shared::testing::message_of([&] { read(folder.file_with("w.pgm", wrong)); });
  };
  CHECK(message("P2 3 3 255 1").find("not a binary PGM or PPM") != std::string::npos);
  CHECK(message("P5 3 3 65535 1").find("255") != std::string::npos);
  CHECK(message("P5 3 3 255 1").find("ends early") != std::string::npos);
  CHECK(message("P5 3").find("ends early") != std::string::npos);
  CHECK(message("P5 1 1 255 1").find("smaller than a patch") != std::string::npos);
}
