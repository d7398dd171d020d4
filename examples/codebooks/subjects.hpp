/// The quantisers that are compared, by the names of the command line.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "train.hpp"

namespace codebooks {

struct subject {
  std::string name;
  std::string title;
  std::string kind;  ///< the colour in the picture
  std::function<measured(const split&, const training&, const std::function<void(double)>&)> train;
};

/// A subject that trains what `make` gives.
template <typename Make>
subject make_subject(std::string name, std::string title, std::string kind, Make make) {
  return {std::move(name), std::move(title), std::move(kind),
          [make](const split& data, const training& how, const std::function<void(double)>& shown) {
            return codebooks::train(make(), data, how, shown);
          }};
}

// One function a source file.
std::vector<subject> single_codebooks();
std::vector<subject> several_codebooks();
std::vector<subject> without_a_table();

inline std::vector<subject> all_subjects() {
  std::vector<subject> all;
  for (const auto& some : {single_codebooks(), several_codebooks(), without_a_table()})
    all.insert(all.end(), some.begin(), some.end());
  return all;
}

}  // namespace codebooks
