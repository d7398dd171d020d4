#include <sluice/expert/bank.hpp>
#include <sluice/expert/bank_ref.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/io/model_file.hpp>
#include <sluice/io/safetensors_reader.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"
#include "temporary_folder.hpp"

using namespace sluice;

namespace {

struct two_gates {
  using bank_type = expert_bank<ffn<float>>;
  using layer_type = moe_layer<top_k_router<float>, bank_ref<bank_type>>;

  bank_type experts{4, 6, 5};
  layer_type first{top_k_router<float>{6, 4}, bank_ref{experts}};
  layer_type second{top_k_router<float>{6, 4}, bank_ref{experts}};

  two_gates() = default;
  two_gates(const two_gates&) = delete;
  two_gates& operator=(const two_gates&) = delete;

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("experts", self.experts);
    visit("first", self.first);
    visit("second", self.second);
  }
};

}  // namespace

TEST_CASE("save and load: a bank that two layers share is in the file once", "[io][bank_ref]") {
  const test::temporary_folder folder;
  two_gates saved, loaded;
  initialize(saved, 1);
  save(saved, folder / "model");
  CHECK(safetensors_reader(folder / "model").tensors().size() == 4 * 2 + 2);
  load(loaded, folder / "model");
  const matrix<float> x = test::random_matrix<float>(9, 6, 2);
  matrix<float> expected(9, 6), y(9, 6);
  two_gates::layer_type::workspace workspace;
  saved.second.forward(x, expected, workspace);
  loaded.second.forward(x, y, workspace);
  CHECK(test::same_bits(y, expected));
}
