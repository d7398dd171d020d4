/// The layers that are compared. families_*.cpp say what each is, one entry a router; the compiler works on them in
/// parallel.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "progress.hpp"
#include "train.hpp"

namespace digits {

/// About as many multiplications a token in every layer: two experts of hidden width H (or one of 2H) beside a dense
/// baseline of 2H.
inline constexpr index_t token_size = 32;   // D
inline constexpr index_t hidden = 64;       // H
inline constexpr index_t expert_count = 8;  // E

/// What the command line and the table call a router, what the picture calls it, and how its model is trained.
struct family {
  std::string_view name;
  std::string title;
  std::function<result(training, const dataset&, progress&)> train;

  /// Names the last experts, where they are not like the others.
  family with_expert_names(std::vector<std::string> names) const {
    family f = *this;
    f.train = [inner = train, names](training how, const dataset& data, progress& shown) {
      result r = inner(how, data, shown);
      std::copy(names.rbegin(), names.rend(), r.experts.rbegin());
      return r;
    };
    return f;
  }
};

/// Whether a router looks at all tokens of the batch, or at each image on its own. Routers whose choice for a token
/// depends on other tokens do the latter: what they say about an image then depends on that image alone.
enum class routed { as_batch, per_image };

/// make() returns the layer, untrained.
template <typename Make>
family make_family(std::string_view name, std::string title, Make make, routed groups = routed::as_batch) {
  return {name, title, [=](training how, const dataset& data, progress& shown) {
            how.route_per_image = groups == routed::per_image;
            result r = train(make(), data, how, shown);
            r.router = name;
            r.title = title;
            return r;
          }};
}

family dense_family();
std::vector<family> token_choice_families();
std::vector<family> varied_families();
std::vector<family> other_families();

inline std::vector<family> all_families() {
  std::vector<family> all;
  for (const auto& some : {token_choice_families(), varied_families(), other_families()})
    all.insert(all.end(), some.begin(), some.end());
  return all;
}

}  // namespace digits
