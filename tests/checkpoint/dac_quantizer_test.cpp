#include <sluice/checkpoint/dac_quantizer.hpp>

#include "../io/temporary_folder.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

constexpr index_t dac_codes = 6, dac_narrow = 2, dac_width = 5, dac_stages = 3;

struct dac_weights {
  matrix<float> codes, in_g, in_v, in_bias, out_g, out_v, out_bias;
};

std::vector<dac_weights> drawn_dac() {
  std::vector<dac_weights> all;
  for (std::uint64_t seed = 10; seed < 10 * (dac_stages + 1); seed += 10)
    all.push_back({test::random_matrix<float>(dac_codes, dac_narrow, seed), test::random_matrix<float>(dac_narrow, 1, seed + 1),
                   test::random_matrix<float>(dac_narrow, dac_width, seed + 2), test::random_matrix<float>(dac_narrow, 1, seed + 3),
                   test::random_matrix<float>(dac_width, 1, seed + 4), test::random_matrix<float>(dac_width, dac_narrow, seed + 5),
                   test::random_matrix<float>(dac_width, 1, seed + 6)});
  return all;
}

void write_dac(const std::filesystem::path& path, const std::vector<dac_weights>& stages, const std::string& without = "none") {
  safetensors_writer file;
  const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape, const matrix<float>& numbers) {
    if (!name.ends_with(without)) file.add(name, shape, std::span<const float>(numbers.data(), as_size(numbers.size())));
  };
  for (std::size_t j = 0; j < stages.size(); ++j) {
    const std::string start = "quantizer.quantizers." + std::to_string(j) + '.';
    const dac_weights& w = stages[j];
    add(start + "codebook.weight", {dac_codes, dac_narrow}, w.codes);
    add(start + "in_proj.weight_g", {dac_narrow, 1, 1}, w.in_g);
    add(start + "in_proj.weight_v", {dac_narrow, dac_width, 1}, w.in_v);
    add(start + "in_proj.bias", {dac_narrow}, w.in_bias);
    add(start + "out_proj.weight_g", {dac_width, 1, 1}, w.out_g);
    add(start + "out_proj.weight_v", {dac_width, dac_narrow, 1}, w.out_v);
    add(start + "out_proj.bias", {dac_width}, w.out_bias);
  }
  file.save(path);
}

matrix<double> folded(const matrix<float>& g, const matrix<float>& v) {
  matrix<double> w = v.cast<double>().rowwise().normalized();
  for (index_t r = 0; r < w.rows(); ++r) w.row(r) *= static_cast<double>(g(r, 0));
  return w;
}

}  // namespace

TEMPLATE_TEST_CASE("dac_quantizer: loads by its published names and codes by the published rule", "[checkpoint][codebook]", float, double) {
  using S = TestType;
  const test::temporary_folder folder;
  const auto stages = drawn_dac();
  write_dac(folder / "codec.safetensors", stages);
  auto rq = load_dac_quantizer<S>(folder / "codec.safetensors");
  REQUIRE(rq.depth() == dac_stages);
  const matrix<S> x = test::random_matrix<S>(20, dac_width, 5);
  matrix<S> y(20, dac_width);
  matrix<index_t> ids(20, dac_stages);
  typename dac_quantizer<S>::workspace workspace;
  rq.encode(x, ids, workspace);
  rq.decode(ids, y, workspace);
  matrix<double> left = x.template cast<double>(), sum = matrix<double>::Zero(20, dac_width);
  for (index_t j = 0; j < dac_stages; ++j) {
    const dac_weights& w = stages[as_size(j)];
    const matrix<double> codes = w.codes.cast<double>();
    for (index_t t = 0; t < 20; ++t) {
      const Eigen::VectorXd z = folded(w.in_g, w.in_v) * left.row(t).transpose() + w.in_bias.cast<double>();
      index_t best = 0;
      (codes.rowwise().normalized().rowwise() - z.normalized().transpose()).rowwise().squaredNorm().minCoeff(&best);
      CHECK(ids(t, j) == best);
      const Eigen::VectorXd value = folded(w.out_g, w.out_v) * codes.row(best).transpose() + w.out_bias.cast<double>();
      left.row(t) -= value.transpose();
      sum.row(t) += value.transpose();
    }
  }
  CHECK(test::largest_difference(matrix<double>(y.template cast<double>()), sum) < static_cast<double>(test::bound<S>(20, 30)));
}

TEST_CASE("dac_quantizer: what is missing is listed", "[checkpoint][codebook]") {
  const test::temporary_folder folder;
  write_dac(folder / "codec.safetensors", drawn_dac(), "1.in_proj.weight_g");
  CHECK_THROWS_WITH(load_dac_quantizer<float>(folder / "codec.safetensors"),
                    Catch::Contains("missing \"quantizer.quantizers.1.in_proj.weight_g\""));
}
