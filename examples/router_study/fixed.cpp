// Routers that learn nothing.
#include <sluice/router/fixed/given.hpp>
#include <sluice/router/fixed/hash.hpp>
#include <sluice/router/fixed/random_partition.hpp>

#include "subject.hpp"

namespace study {

std::vector<subject> fixed() {
  using namespace sluice;
  return {{"hash_router", "Hash of the token id",
           [](const task_sizes& s) {
             return make_policy(hash_router<float>{no_gate<float>(s.width, s.experts),
                                                   random_hash(token_vocabulary, s.experts, 1, random_source(3))});
           }},
          {"random_partition_router", "Random partition (EWA)",
           [](const task_sizes& s) {
             return make_policy(random_partition_router<float>{s.width, s.experts});
           }},
          {"given_router", "Given choices: token id mod 8",
           [](const task_sizes& s) { return make_policy(given_router<float>{no_gate<float>(s.width, s.experts)}); }}};
}

}  // namespace study
