/// A router under study: how it is called, and how to make it for a task.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "policy.hpp"

namespace study {

/// What a router is made for.
struct task_sizes {
  index_t width;             ///< D of what it reads
  index_t experts;           ///< E
  index_t steps;             ///< of the whole training: schedules go by them
  index_t tokens_of_sample;  ///< an image's, say
};

/// routing_context::token_ids are below this.
inline constexpr index_t token_vocabulary = 256;

/// Most routers see all tokens of a batch as one group, or do not care; some look at one image or sample at a time.
enum class grouping { whole_batch, by_sample };

struct subject {
  std::string name;   ///< its row in router/routers.csv, which --router takes
  std::string title;  ///< for people
  std::function<any_policy(const task_sizes&)> make;
  grouping digits = grouping::whole_batch;
  grouping clusters = grouping::whole_batch;
  std::string room = {};  ///< where its header is
};

// One function a room of include/sluice/router, in a source of its own: the compiler works on them in parallel.
std::vector<subject> tokens_choose();
std::vector<subject> threshold();
std::vector<subject> experts_choose();
std::vector<subject> assigned();
std::vector<subject> masked();
std::vector<subject> fixed();
std::vector<subject> every_expert();
std::vector<subject> over_training();

inline std::vector<subject> all_subjects() {
  std::vector<subject> all;
  const auto add = [&](const char* room, std::vector<subject> some) {
    for (subject& s : some) {
      s.room = room;
      all.push_back(std::move(s));
    }
  };
  add("tokens choose", tokens_choose());
  add("threshold", threshold());
  add("experts choose", experts_choose());
  add("assigned", assigned());
  add("masked", masked());
  add("fixed", fixed());
  add("every expert", every_expert());
  add("over training", over_training());
  return all;
}

}  // namespace study
