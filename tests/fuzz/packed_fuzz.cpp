// Any bytes are either refused with a file_error, and then nothing has changed, or they are weights that can be
// multiplied with, saved and loaded again unchanged. Panels are read where the fuzzer has put them, so
// AddressSanitizer sees every step beyond.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/io/packed_file.hpp>
#include <sluice/kernel/block_storage.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "demand.hpp"

using sluice::test::demand;

namespace {

using storage = sluice::mixed_storage<sluice::int8_blocks, sluice::int4_blocks, sluice::bfloat16_storage>;
using bank = sluice::expert_bank<sluice::linear_expert<float, storage>>;

bank fresh() { return bank{1, sluice::index_t(40), sluice::index_t(5), {.bias = true}}; }

bool load(bank& model, std::span<const std::byte> bytes) {
  try {
    sluice::load_packed(model, std::make_shared<const sluice::safetensors_reader>(
                                   sluice::safetensors_reader::from_bytes(bytes, "fuzz")));
    return true;
  } catch (const sluice::file_error& error) {
    demand(std::strlen(error.what()) < 20000);
    return false;
  }
}

std::vector<float> product(const bank& model) {
  const std::array<sluice::index_t, 2> rows{0, 3};
  sluice::matrix<float> x = sluice::matrix<float>::Constant(3, 40, 0.5F), y(3, 5);
  bank::tape tape;
  model.forward(x, rows, y, tape, {});
  return {y.data(), y.data() + y.size()};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  bank model = fresh();
  if (!load(model, std::as_bytes(std::span<const std::uint8_t>(data, size)))) {
    demand(model.expert(0).last_map().get_if<sluice::int8_blocks>()->weight().data() == nullptr);
    return 0;
  }
  const std::vector<float> y = product(model);
  sluice::safetensors_writer file;
  sluice::add_packed(file, model);
  const std::vector<std::byte> bytes = file.to_bytes();
  bank again = fresh();
  demand(load(again, bytes));
  demand(std::memcmp(product(again).data(), y.data(), y.size() * sizeof(float)) == 0);
  return 0;
}
