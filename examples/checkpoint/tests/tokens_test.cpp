#include "tokens.hpp"

#include <sluice/io/safetensors_writer.hpp>

#include "../../shared/testing.hpp"

using namespace checkpoint;

TEST_CASE("tokens: drawn ones are a function of the seed, longer draws begin with shorter ones", "[checkpoint]") {
  const auto a = draw_tokens(4, 3, 7), b = draw_tokens(9, 3, 7), c = draw_tokens(4, 3, 8);
  CHECK(a == b.topRows(4));
  CHECK(a != c);
  CHECK(draw_tokens(0, 3, 7).rows() == 0);
}

TEST_CASE("tokens: from CSV", "[checkpoint]") {
  const shared::testing::temporary_folder folder("tokens");
  const auto x = read_tokens(folder.file_with("x.csv", "1,2.5,-3e2\r\n4,5,6\n"), 3);
  CHECK(x.rows() == 2);
  CHECK(x(0, 2) == -300);
  CHECK(x(1, 0) == 4);
  const auto message = [&](const std::string& text) {
    return shared::testing::message_of<sluice::file_error>([&] { read_tokens(folder.file_with("bad.csv", text), 3); });
  };
  CHECK(message("1,2\n").find("line 1 has 2 numbers, a token of this model has 3") != std::string::npos);
  CHECK(message("1,2,3\n1,x,3\n").find("line 2, column 2: 'x' is not a number") != std::string::npos);
  CHECK(message("").find("holds no tokens") != std::string::npos);
  CHECK(message("1,2,1e99\n").find("column 3") != std::string::npos);
}

TEST_CASE("tokens: from safetensors, by name or the only one", "[checkpoint]") {
  const shared::testing::temporary_folder folder("tokens");
  const std::vector<float> numbers{1, 2, 3, 4, 5, 6};
  sluice::safetensors_writer file;
  file.add("x", {1, 2, 3}, numbers);
  file.save(folder.file("x.safetensors"));
  CHECK(read_tokens(folder.file("x.safetensors"), 3).rows() == 2);
  CHECK(read_tokens(folder.file("x.safetensors") + ":x", 3)(1, 2) == 6);
  CHECK_THROWS_AS(read_tokens(folder.file("x.safetensors") + ":y", 3), sluice::file_error);
  CHECK_THROWS_AS(read_tokens(folder.file("x.safetensors"), 2), sluice::file_error);
  const std::vector<float> own{7, 8, 9};
  file.add("layers.1.x", {1, 3}, own);
  file.save(folder.file("layers.safetensors"));
  CHECK(read_tokens_of(folder.file("layers.safetensors"), "layers.1", 3).rows() == 1);
  CHECK(read_tokens_of(folder.file("layers.safetensors") + ":x", "layers.1", 3).rows() == 2);
  CHECK_THROWS_AS(read_tokens_of(folder.file("layers.safetensors"), "layers.0", 3), sluice::file_error);
}
