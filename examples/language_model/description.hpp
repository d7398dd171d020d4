/// What a model is and how it is trained, as a checkpoint keeps it beside the numbers.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>

#include "decimal.hpp"
#include "model.hpp"
#include "shared/error.hpp"
#include "shared/text.hpp"
#include "train.hpp"

namespace language_model {

struct description {
  std::string kind = "top_k";
  sizes size;
  training_options how;
};

/// Tells one text from another.
inline std::uint64_t fingerprint(std::string_view text) {
  std::uint64_t hash = 1469598103934665603u;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

namespace detail {

/// f(key, number, least, most) for everything that a description counts, but for the kind.
template <typename Description, typename F>
void for_each_number(Description& d, F&& f) {
  constexpr index_t many = 1 << 24;
  f("width", d.size.width, index_t{8}, index_t{4096});
  f("depth", d.size.depth, index_t{1}, index_t{64});
  f("length", d.size.length, index_t{2}, index_t{8192});
  f("steps", d.how.steps, index_t{1}, many);
  f("windows", d.how.windows, index_t{1}, index_t{4096});
  f("rate", d.how.rate, 0.0, 1.0);
  f("decay", d.how.decay, 0.0, 1.0);
  f("validation", d.how.validation, index_t{1}, many);
  f("seed", d.how.seed, std::uint64_t{0}, UINT64_MAX / 2);
}

}  // namespace detail

inline std::map<std::string, std::string> to_metadata(const description& d, std::string_view training_text) {
  std::map<std::string, std::string> about{{"kind", d.kind}, {"text", std::to_string(fingerprint(training_text))}};
  detail::for_each_number(d, [&](const char* key, const auto& number, const auto&, const auto&) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(number)>, double>)
      about[key] = shortest(number);
    else
      about[key] = std::to_string(number);
  });
  return about;
}

/// Throws input_error unless everything is there and in range.
inline description from_metadata(const std::map<std::string, std::string>& about, const std::string& path) {
  description d;
  const auto text_of = [&](const std::string& key) -> const std::string& {
    const auto found = about.find(key);
    if (found == about.end())
      throw shared::input_error(path + ": no checkpoint of this program: it does not say \"" + key + '"');
    return found->second;
  };
  d.kind = text_of("kind");
  detail::for_each_number(d, [&](const char* key, auto& number, const auto& least, const auto& most) {
    const std::string& text = text_of(key);
    if (!read_number(text, number, least, most))
      throw shared::input_error(path + ": no checkpoint of this program: its " + key + " is " +
                                shared::in_quotes(text));
  });
  return d;
}

}  // namespace language_model
