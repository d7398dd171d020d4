// One file of reference numbers: its inputs, its settings, and the comparison of every expected tensor.
#pragma once

#include <sluice/core/types.hpp>
#include <sluice/io/safetensors_reader.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace oracle {

using sluice::index_t;

/// Thrown by a replay that does not know a setting of its case.
struct unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The comparison that came closest to its bound, or broke it.
struct worst_entry {
  double ratio = 0;  ///< error / bound
  double error = 0;
  double bound = 0;
  std::string tensor;
};

template <typename Scalar>
class oracle_case {
public:
  explicit oracle_case(const sluice::safetensors_reader& file)
      : file_(file), config_(nlohmann::json::parse(file.metadata().at("config"))) {}

  // ---- settings and inputs ----------------------------------------------------------------------------------------

  const sluice::safetensors_reader& file() const { return file_; }
  const nlohmann::json& config() const { return config_; }
  template <typename T>
  T setting(const char* name) const {
    if (!config_.contains(name)) throw unsupported(std::string("the case has no setting ") + name);
    return config_.at(name).get<T>();
  }
  template <typename T>
  T setting(const char* name, T otherwise) const {
    return config_.contains(name) && !config_.at(name).is_null() ? config_.at(name).get<T>() : otherwise;
  }

  bool has(const std::string& name) const { return file_.contains(name); }
  index_t axis(const std::string& name, std::size_t a) const { return file_.at(name).shape.at(a); }
  std::size_t rank(const std::string& name) const { return file_.at(name).shape.size(); }
  std::vector<Scalar> numbers(const std::string& name) const { return file_.read_vector<Scalar>(name); }
  std::vector<index_t> integers(const std::string& name) const { return file_.read_vector<index_t>(name); }

  /// The tensor as rows: all axes but the last become one.
  sluice::matrix<Scalar> rows(const std::string& name) const {
    const auto values = numbers(name);
    const index_t cols = file_.at(name).shape.back();
    const index_t count = cols == 0 ? 0 : static_cast<index_t>(values.size()) / cols;
    return Eigen::Map<const sluice::matrix<Scalar>>(values.data(), count, cols);
  }

  /// Borders of the groups of x [G,S,D]; empty for x [T,D].
  std::vector<index_t> groups() const {
    std::vector<index_t> borders;
    if (rank("x") == 3)
      for (index_t g = 0; g <= axis("x", 0); ++g) borders.push_back(g * axis("x", 1));
    return borders;
  }

  // ---- comparison -------------------------------------------------------------------------------------------------

  /// Compares expected.<name>, if the file has it, with ours. Tolerances are for files that name their own.
  void check(const std::string& name, std::span<const Scalar> ours, double relative_tolerance = 0, double tolerance = 0) {
    const std::string tensor = "expected." + name;
    if (!has(tensor)) return;
    compared_.insert(tensor);
    const auto theirs = numbers(tensor);
    if (theirs.size() != ours.size()) {
      fail(tensor + " has " + std::to_string(theirs.size()) + " numbers, ours " + std::to_string(ours.size()));
      return;
    }
    double largest = 0;
    for (const Scalar b : theirs) largest = std::max(largest, std::abs(static_cast<double>(b)));
    const bool gradient = name.starts_with("grad");
    for (std::size_t i = 0; i < theirs.size(); ++i) {
      const double b = static_cast<double>(theirs[i]);
      const double error = std::abs(static_cast<double>(ours[i]) - b);
      const double limit = std::max({bound(b, largest, gradient), relative_tolerance * std::abs(b), tolerance});
      note(tensor, error, limit);
    }
  }
  void check(const std::string& name, const sluice::matrix<Scalar>& ours, double relative_tolerance = 0, double tolerance = 0) {
    check(name, std::span<const Scalar>(ours.data(), static_cast<std::size_t>(ours.size())), relative_tolerance, tolerance);
  }
  void check(const std::string& name, Scalar ours, double relative_tolerance = 0) {
    check(name, std::span<const Scalar>(&ours, 1), relative_tolerance);
  }

  void check_integers(const std::string& name, std::span<const index_t> ours) {
    const std::string tensor = "expected." + name;
    if (!has(tensor)) return;
    compared_.insert(tensor);
    const auto theirs = integers(tensor);
    if (!std::equal(theirs.begin(), theirs.end(), ours.begin(), ours.end())) fail(tensor + " differs");
  }

  /// Compares bit for bit, but a negative zero equals zero; or within so many units in the last place.
  void check_exact(const std::string& name, std::span<const float> ours, std::uint32_t ulps = 0) {
    const std::string tensor = "expected." + name;
    if (!has(tensor)) return;
    compared_.insert(tensor);
    const std::vector<float> theirs = file_.read_vector<float>(tensor);
    if (theirs.size() != ours.size()) {
      fail(tensor + " has " + std::to_string(theirs.size()) + " numbers, ours " + std::to_string(ours.size()));
      return;
    }
    for (std::size_t i = 0; i < theirs.size(); ++i) {
      const auto a = std::bit_cast<std::uint32_t>(ours[i]), b = std::bit_cast<std::uint32_t>(theirs[i]);
      const std::uint32_t magnitudes = (a | b) & 0x7FFFFFFFU, distance = a > b ? a - b : b - a;
      if (magnitudes == 0 || distance <= ulps) continue;
      note(tensor, std::abs(static_cast<double>(ours[i]) - static_cast<double>(theirs[i])), 0);
      return;
    }
    note(tensor, 0, 1);
  }
  void check_exact(const std::string& name, const sluice::matrix<float>& ours, std::uint32_t ulps = 0) {
    check_exact(name, std::span<const float>(ours.data(), static_cast<std::size_t>(ours.size())), ulps);
  }

  /// Compares a tensor of bytes.
  void check_bytes(const std::string& name, std::span<const std::byte> ours) {
    const std::string tensor = "expected." + name;
    if (!has(tensor)) return;
    compared_.insert(tensor);
    const auto theirs = file_.at(tensor).bytes;
    if (!std::equal(theirs.begin(), theirs.end(), ours.begin(), ours.end())) fail(tensor + " differs");
  }

  void fail(const std::string& what) { failures_.push_back(what); }

  const std::vector<std::string>& failures() const { return failures_; }
  const worst_entry& worst() const { return worst_; }
  std::size_t compared() const { return compared_.size(); }

  /// Expected tensors that no replay looked at.
  std::vector<std::string> not_compared() const {
    std::vector<std::string> names;
    for (const auto& tensor : file_.tensors())
      if (tensor.name.starts_with("expected.") && !compared_.contains(tensor.name)) names.push_back(tensor.name);
    return names;
  }

private:
  /// How far a correct result may be from the stored number b of a tensor whose largest magnitude is `largest`.
  ///
  /// The stored number was computed in double and rounded to float: half a float ulp, 2^-24 |b|. Ours is a chain of at most
  /// three sums (gate, hidden layer, output; as many backward) over at most D + H + E + T terms of order `largest` or 1,
  /// each with relative error eps, and a dozen roundings of functions between them. In float this is never allowed to be
  /// looser than the advice that comes with the files, which was found by an independent float evaluation.
  double bound(double b, double largest, bool gradient) const {
    const auto size = [&](const char* name) {
      if (!config_.contains(name) || !config_.at(name).is_array()) return static_cast<double>(setting<index_t>(name, 0));
      const auto sizes = config_.at(name).template get<std::vector<double>>();  // of unequal experts
      return *std::max_element(sizes.begin(), sizes.end());
    };
    const double experts = config_.contains("E") && config_.at("E").is_number() ? size("E") : 1;
    const double terms = size("D") + size("H") + experts + size("T") + 12;
    const double eps = std::numeric_limits<Scalar>::epsilon();
    const double derived = std::abs(b) * 0x1p-24 + 3 * terms * eps * std::max(1.0, largest);
    const double advice = gradient ? 2e-6 + 5e-6 * largest + 5e-5 * std::abs(b) : 1e-6 + 2e-6 * largest + 2e-5 * std::abs(b);
    return std::min(derived, advice);
  }

  void note(const std::string& tensor, double error, double limit) {
    const double ratio = error / limit;
    if (!(ratio <= worst_.ratio) || worst_.tensor.empty()) worst_ = {ratio, error, limit, tensor};
    if (!(error <= limit) && (failures_.empty() || failures_.back() != tensor)) failures_.push_back(tensor);
  }

  const sluice::safetensors_reader& file_;
  nlohmann::json config_;
  std::set<std::string> compared_;
  std::vector<std::string> failures_;
  worst_entry worst_;
};

// Compiled once, in oracle_case.cpp: what a replay instantiates on top is its layers.
#define ORACLE_SETTING(linkage, Scalar, T)                                     \
  linkage template T oracle_case<Scalar>::setting<T>(const char* name) const; \
  linkage template T oracle_case<Scalar>::setting<T>(const char* name, T otherwise) const;
#define ORACLE_CASE(linkage, Scalar)            \
  linkage template class oracle_case<Scalar>;   \
  ORACLE_SETTING(linkage, Scalar, index_t)      \
  ORACLE_SETTING(linkage, Scalar, bool)         \
  ORACLE_SETTING(linkage, Scalar, float)        \
  ORACLE_SETTING(linkage, Scalar, double)       \
  ORACLE_SETTING(linkage, Scalar, std::string)
ORACLE_CASE(extern, float)
ORACLE_CASE(extern, double)

/// One system: its directory name and its replay in both precisions.
struct replayer {
  std::string_view system;
  void (*in_float)(oracle_case<float>&);
  void (*in_double)(oracle_case<double>&);
};

}  // namespace oracle
