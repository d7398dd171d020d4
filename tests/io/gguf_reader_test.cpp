#include <sluice/io/gguf_reader.hpp>

#include "gguf_cases.hpp"
#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <cstring>
#include <set>
#include <string>
#include <vector>

using namespace sluice;
using test::contains;

TEST_CASE("gguf_reader: every type of blocks is read exactly, whole and in any part, as float and as double", "[io]") {
  const std::string text = file_cases::gguf_of_every_block();
  const gguf_reader file = gguf_reader::from_bytes(test::bytes_of(text), "m.gguf");
  std::size_t block_types = 0;
  for (const ggml_type_traits& type : ggml_types) block_types += type.inputs > 1 ? 1 : 0;
  REQUIRE(file.tensors().size() == block_types);
  for (const tensor_info& tensor : file.tensors()) {
    CAPTURE(tensor.type_name());
    REQUIRE(tensor.decoder != nullptr);
    CHECK(tensor.number_type() == data_type::f32);
    const std::vector<float> all = file.read_vector(tensor.name);
    REQUIRE(all.size() == tensor.elements());
    std::set<std::int32_t> distinct;
    for (const float v : all) distinct.insert(detail::bits_of(v));
    CHECK(distinct.size() > 1);  // or nothing was decoded
    std::vector<float> parts(all.size());
    for (std::size_t first = 0, count = 1; first < all.size(); first += count, count = count % 83 + 7)
      safetensors_reader::copy(tensor, first, std::span(parts).subspan(first, std::min(count, all.size() - first)));
    CHECK(std::memcmp(parts.data(), all.data(), all.size() * sizeof(float)) == 0);
    std::vector<double> wide(all.size());
    safetensors_reader::copy(tensor, std::span(wide));
    for (std::size_t i = 0; i < all.size(); ++i)
      CHECK((static_cast<float>(wide[i]) == all[i] || (is_nan(wide[i]) && is_nan(all[i]))));
  }
}

TEST_CASE("gguf_reader: a mapped file, found tensors and keys, and what cannot be read", "[io]") {
  const test::temporary_folder folder;
  for (const file_cases::file_case& c : file_cases::valid_gguf_files())
    if (c.name == "another_type") test::write_bytes(folder / "m.gguf", c.bytes);
  const gguf_reader file(folder / "m.gguf");
  CHECK(file.find("a") == &file.at("a"));
  CHECK(file.find("c") == nullptr);
  CHECK(file.find_key("k") == nullptr);
  CHECK(file.read_vector("b").size() == 1);
  CHECK_THROWS_WITH(file.read_vector("c"), contains("tensor \"c\": is not in the file"));
  CHECK_THROWS_WITH(file.read_vector("a"), contains("tensor \"a\": is type 77, cannot be read as F32"));
  CHECK_THROWS_WITH(gguf_reader(folder / "none.gguf"), contains("none.gguf\": cannot be opened"));
}
