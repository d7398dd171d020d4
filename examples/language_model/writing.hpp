/// Text from a model: byte after byte, drawn by what it says of the next one.
#pragma once

#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "model.hpp"

namespace language_model {

struct writing {
  index_t bytes = 400;
  double temperature = 0.8;  ///< 0: always the most likely byte
  sluice::random_source random{1};
};

/// `text` and what follows it. A model sees no more than the last `length` bytes, a line end before an empty text.
inline std::string continued(transformer& model, std::string text, index_t length, const writing& how,
                             const sluice::executor_ref& executor) {
  constexpr sluice::random_site site{"language_model.byte"};
  const std::size_t given = text.size();
  std::vector<index_t> ids;
  sluice::matrix_buffer<float> logits;
  for (index_t i = 0; i < how.bytes; ++i) {
    const std::string_view seen =
        std::string_view(text).substr(text.size() - std::min(text.size(), static_cast<std::size_t>(length)));
    ids.clear();
    for (const char c : seen.empty() ? std::string_view("\n") : seen) ids.push_back(static_cast<unsigned char>(c));
    context c;
    c.token_ids = ids;
    c.executor = executor;
    logits.resize(static_cast<index_t>(ids.size()), byte_values);
    model.forward(logits.map(), c);

    float* const odds = logits.row(logits.rows() - 1);
    index_t next = sluice::kernel::arg_max(odds, byte_values);
    if (how.temperature > 0) {
      for (index_t b = 0; b < byte_values; ++b) odds[b] = static_cast<float>(odds[b] / how.temperature);
      sluice::kernel::softmax(odds, odds, byte_values);
      double left = how.random.uniform(site, i);
      next = 0;
      while (next + 1 < byte_values && (left -= static_cast<double>(odds[next])) > 0) ++next;
    }
    text += static_cast<char>(next);
  }
  return text.substr(given);
}

}  // namespace language_model
