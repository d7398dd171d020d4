#include <sluice/checkpoint/encodec_quantizer.hpp>

#include "../io/temporary_folder.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

constexpr index_t encodec_codes = 6, encodec_width = 4, encodec_stages = 3;

/// A file as the codec's checkpoints are, with something else in it. `change` sees every tensor's name first and may
/// leave it out.
template <typename Change>
void write_encodec(const std::filesystem::path& path, const encodec_names& names, Change&& change, std::vector<matrix<float>>* codebooks = nullptr) {
  safetensors_writer file;
  std::vector<matrix<float>> kept;
  kept.reserve(100);
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape, const matrix<float>& numbers) {
    kept.push_back(numbers);
    if (change(name, shape)) file.add(name, shape, std::span<const float>(kept.back().data(), as_size(kept.back().size())));
  };
  for (index_t j = 0; j < encodec_stages; ++j) {
    const std::string start = names.prefix + '.' + std::to_string(j) + '.' + names.codebook + '.';
    const auto seed = static_cast<std::uint64_t>(j);
    const matrix<float> codes = test::random_matrix<float>(encodec_codes, encodec_width, seed + 1);
    add(start + "inited", {1}, matrix<float>::Ones(1, 1));
    add(start + "cluster_size", {encodec_codes}, test::random_matrix<float>(1, encodec_codes, seed + 11).cwiseAbs());
    add(start + "embed", {encodec_codes, encodec_width}, codes);
    add(start + "embed_avg", {encodec_codes, encodec_width}, 3 * codes);
    if (codebooks != nullptr) codebooks->push_back(codes);
  }
  add("encoder.model.0.conv.bias", {2}, matrix<float>::Ones(1, 2));
  file.save(path);
}

bool take_every_tensor(const std::string&, const std::vector<std::int64_t>&) { return true; }

}  // namespace

TEMPLATE_TEST_CASE("encodec_quantizer: loads by its published names and codes by the published rule", "[checkpoint][codebook]", float, double) {
  using S = TestType;
  const test::temporary_folder folder;
  for (const auto& names : {encodec_names{}, encodec_names_of_transformers}) {
    std::vector<matrix<float>> codebooks;
    write_encodec(folder / "codec.safetensors", names, take_every_tensor, &codebooks);
    auto rq = load_encodec_quantizer<S>(folder / "codec.safetensors", names);
    REQUIRE(rq.depth() == encodec_stages);
    const matrix<S> x = test::random_matrix<S>(20, encodec_width, 5);
    matrix<S> left = x, sum = matrix<S>::Zero(20, encodec_width), y(20, encodec_width);
    matrix<index_t> ids(20, encodec_stages);
    typename encodec_quantizer<S>::workspace workspace;
    rq.encode(x, ids, workspace);
    rq.decode(ids, y, workspace);
    for (index_t j = 0; j < encodec_stages; ++j) {
      const matrix<S> codes = codebooks[as_size(j)].template cast<S>();
      CHECK(test::same_bits(rq.stage(j).codebook().table().to_matrix(), codes));
      const matrix<float> sums = 3 * codebooks[as_size(j)];
      CHECK(test::same_bits(rq.stage(j).codebook().sums().to_matrix(), matrix<S>(sums.template cast<S>())));
      for (index_t t = 0; t < 20; ++t) {
        index_t best = 0;
        (codes.rowwise() - left.row(t)).rowwise().squaredNorm().minCoeff(&best);
        CHECK(ids(t, j) == best);
        left.row(t) -= codes.row(best);
        sum.row(t) += codes.row(best);
      }
    }
    CHECK(test::same_bits(y, sum));
  }
}

TEST_CASE("encodec_quantizer: what is missing, differs or is left over is listed", "[checkpoint][codebook]") {
  const test::temporary_folder folder;
  const auto problems = [&](auto&& change) {
    write_encodec(folder / "codec.safetensors", {}, change);
    try {
      load_encodec_quantizer<float>(folder / "codec.safetensors");
    } catch (const file_error& error) {
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  CHECK_THAT(problems([](const std::string& name, auto&) { return !name.ends_with("1._codebook.embed"); }),
             Catch::Contains("missing \"quantizer.vq.layers.1._codebook.embed\"") && Catch::Contains("1 problem:"));
  CHECK_THAT(problems([](const std::string& name, auto& shape) {
               if (name.ends_with("2._codebook.embed_avg")) shape = {encodec_width, encodec_codes};
               return true;
             }),
             Catch::Contains("[4, 6], not [6, 4]"));
  CHECK_THAT(problems([](const std::string& name, auto&) { return !name.starts_with("quantizer.vq.layers.1"); }),
             Catch::Contains("left over \"quantizer.vq.layers.2._codebook.embed\""));
  CHECK_THAT(problems([](const std::string& name, auto&) { return name.starts_with("encoder"); }),
             Catch::Contains("has no tensors \"quantizer.vq.layers.0.*\""));
}
