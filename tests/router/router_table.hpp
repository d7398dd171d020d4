// The table of routers (include/sluice/router/routers.csv), and who stands for its rows: each router's own test says
// how to make one,
//   const test::table_router top_k_in_table("top_k_router", [] {
//     return test::made(top_k_router<double>{6, 4, {.top_k = 2}}, {.k = 2});
//   });
// and table_test.cpp holds what the row says against what the router does.
#pragma once

#include <sluice/core/concepts.hpp>

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "any_router.hpp"

namespace sluice::test {

/// The batch that rows are checked on.
inline constexpr index_t table_tokens = 48;

/// What a check has to know of the router that it was given.
struct made_with {
  index_t k = 0;                         ///< the k of the row
  index_t training_capacity = 0;         ///< the C of the row, of table_tokens tokens in one group
  index_t inference_capacity = 0;        ///< the same without training; 0: as in training
  index_t vocabulary = 8;                ///< token_ids are below it
  index_t modalities = 2;                ///< modality_ids are below it
  index_t clusters = 3;                  ///< cluster_ids are below it
  index_t tasks = 2;                     ///< task_id is below it
  index_t offered = 1;                   ///< columns of expert_ids
  index_t feature_width = 5;             ///< columns of routing_context::features and group_features
  std::vector<index_t> steps{0, 10000};  ///< between which a router that reads the step changes
  std::uint64_t seed = 7;                ///< of the initial values; 0: the router has its own already
};

/// A router, and what its type says about it.
struct made_router {
  std::variant<any_router<double, sparse_plan<double>>, any_router<double, dense_plan<double>>,
               any_router<double, soft_plan<double>>>
      router;
  bool causal;
  bool exact_gradient;
  bool trains;  ///< whether it has a backward
  made_with options;
};

template <RouterPolicy Router>
made_router made(const Router& router, made_with options = {}) {
  return {any_router<double, typename Router::plan>(router), is_causal<Router>, has_exact_gradient<Router>,
          DifferentiableRouter<Router>, std::move(options)};
}

using router_maker = std::function<made_router()>;

/// Every maker by the name of its row.
inline std::multimap<std::string, router_maker>& table_makers() {
  static std::multimap<std::string, router_maker> makers;
  return makers;
}

struct table_router {
  table_router(std::string name, router_maker make) { table_makers().emplace(std::move(name), std::move(make)); }
};

/// A line of routers.csv.
struct table_row {
  std::string name, header, does, papers;
  std::string causal;              ///< yes, no
  std::string experts_a_token;     ///< k, 1, at most k, at most 1, varies, all
  std::string tokens_an_expert;    ///< free, at most C, exactly C, all
  std::string gradient;            ///< exact, estimator, straight-through, none, inference only
  std::vector<std::string> needs;  ///< fields of the context without which a call throws
  std::vector<std::string> uses;   ///< fields that change what it does
  std::vector<std::string> losses;
};

/// Throws std::runtime_error, with the line, if the file is no such table.
std::vector<table_row> read_router_table(const std::string& path);

/// What a row says that the router does not do, and what the router does that the row does not say; empty: it is true.
std::vector<std::string> complaints_about(const table_row& row, const made_router& made);

}  // namespace sluice::test
