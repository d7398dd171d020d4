/// Trains every router on two small tasks, shows what each costs and does, and says which claims of the papers hold.
///
///   router_study                              all of them, three seeds each: a table and router_study.svg, in a few minutes
///   router_study --router relu_router         one of them;  --help says what else there is
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <mutex>
#include <string>
#include <variant>
#include <vector>

#include <sluice/gate/jitter.hpp>
#include <sluice/router/every_expert/dense.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "../shared/file.hpp"
#include "../shared/parallel_jobs.hpp"
#include "../shared/progress_line.hpp"
#include "claims.hpp"
#include "clusters.hpp"
#include "digits_task.hpp"
#include "options.hpp"
#include "picture.hpp"
#include "study.hpp"
#include "table.hpp"

namespace {

using namespace study;

constexpr index_t cluster_experts = 8, cluster_filters = 8;  // the paper's, a class
constexpr index_t target = 2;                                // experts a token that routers with a choice of it aim at

/// How much is trained.
struct amount {
  int epochs = 12;
  index_t samples = 1000, steps = 300;              // of the clustered task, for every router
  index_t paper_samples = 4000, paper_steps = 1500;  // and for its paper's claims
};

/// One training. It tells `shown` how far it is, 0..1.
struct job {
  std::string what;
  std::function<measured(const std::function<void(double)>& shown)> run;
  std::vector<measured>* into;
  std::size_t place;
};

clusters::training how_to_train(const amount& how_much, std::uint64_t seed) {
  return {.seed = seed, .steps = how_much.steps, .look_every = std::max<index_t>(1, how_much.steps / 30)};
}

/// The claims of the paper need more samples than a look at every router does.
void add_paper_jobs(std::vector<job>& jobs, paper_outcome& paper, const options& o, const amount& how_much) {
  using clusters::activation, clusters::patch_expert;
  using sluice::dense_router, sluice::added_jitter_gate, sluice::linear_gate;
  // The best of logits + U(0, 1), weighed by the softmax: what the paper trains.
  const auto mixture = [] {
    sluice::top_k_router<float, sluice::dynamic, sluice::dynamic, added_jitter_gate<linear_gate<float>>> router(
        added_jitter_gate<linear_gate<float>>(clusters::patch_width, cluster_experts, 0.5),
        {.top_k = 1, .weights = sluice::weighting::pre});
    return std::get<0>(make_policy(std::move(router)));
  };
  const auto one = [] { return std::get<0>(make_policy(dense_router<float>{clusters::patch_width, 1})); };
  const auto add = [&](const char* what, std::vector<measured>& into, auto make, patch_expert expert, double rate) {
    into.resize(static_cast<std::size_t>(o.seeds));
    for (std::size_t i = 0; i < into.size(); ++i) {
      clusters::training how = how_to_train(how_much, o.seed + i);
      how.steps = how_much.paper_steps;
      how.expert_rate = rate;
      jobs.push_back({what,
                      [=](const std::function<void(double)>&) {
                        return clusters::train(make(), expert, clusters::make(how_much.paper_samples, how.seed), how);
                      },
                      &into, i});
    }
  };
  add("nonlinear experts", paper.cubic_experts, mixture, patch_expert(cluster_filters, activation::cubic), 0.001);
  add("linear experts", paper.linear_experts, mixture, patch_expert(cluster_filters, activation::linear), 0.001);
  add("one network", paper.one_network, one, patch_expert(5 * cluster_filters, activation::cubic), 0);
}

void add_router_jobs(std::vector<job>& jobs, outcome& o, const options& asked, const amount& how_much,
                     const digits::dataset& data) {
  const digits::training plain;
  const index_t batches = (data.train.size() + plain.batch_images - 1) / plain.batch_images;
  o.digits.resize(static_cast<std::size_t>(asked.seeds));
  o.clusters.resize(static_cast<std::size_t>(asked.seeds));
  for (std::size_t i = 0; i < o.digits.size(); ++i) {
    digits::training how;
    how.seed = asked.seed + i;
    how.epochs = how_much.epochs;
    how.patch = images::patch;
    how.route_per_image = o.of.digits == grouping::by_sample;
    const task_sizes digit_sizes{images::token_size, images::expert_count, how.epochs * batches, images::tokens};
    jobs.push_back({o.of.name + " on digits",
                    [=, &data, make = o.of.make](const std::function<void(double)>& shown) {
                      return std::visit([&](const auto& p) { return images::train(p, data, how, shown); },
                                        make(digit_sizes));
                    },
                    &o.digits, i});

    clusters::training cluster_how = how_to_train(how_much, how.seed);
    cluster_how.by_sample = o.of.clusters == grouping::by_sample;
    const task_sizes cluster_sizes{clusters::patch_width, cluster_experts, cluster_how.steps, 1};
    const clusters::patch_expert expert(cluster_filters, clusters::activation::cubic);
    jobs.push_back({o.of.name + " on clusters",
                    [=, make = o.of.make](const std::function<void(double)>&) {
                      const auto samples = clusters::make(how_much.samples, cluster_how.seed);
                      return std::visit([&](const auto& p) { return clusters::train(p, expert, samples, cluster_how); },
                                        make(cluster_sizes));
                    },
                    &o.clusters, i});
  }
}

/// Runs the jobs on some threads; what they give does not depend on how many there are.
void run(const std::vector<job>& jobs, const options& o) {
  const bool bar = !o.quiet && (o.bar || shared::stderr_is_terminal());
  shared::progress_line line(std::cerr, shared::stderr_width());
  std::mutex shown;
  std::vector<double> done(jobs.size(), 0);
  std::size_t finished = 0;
  const auto show = [&](std::size_t i, double part) {
    const std::scoped_lock lock(shown);
    done[i] = part;
    double all = 0;
    for (const double d : done) all += d;
    if (bar)
      line.draw(all / static_cast<double>(jobs.size()),
                std::to_string(finished) + "/" + std::to_string(jobs.size()) + "  " + jobs[i].what);
  };
  shared::run_jobs(jobs.size(), o.threads, [&](std::size_t i) {
    const job& j = jobs[i];
    const measured m = j.run([&](double part) { show(i, part); });
    (*j.into)[j.place] = m;
    {
      const std::scoped_lock lock(shown);
      ++finished;
      if (!bar && !o.quiet)
        std::cerr << finished << "/" << jobs.size() << "  " << j.what << ": " << shared::percent(m.accuracy, 2) << ", "
                  << shared::fixed(m.seconds, 1) << " s\n";
    }
    show(i, 1);
  });
  line.wipe();
}

/// The first images of a set.
void keep_first(digits::labelled_images& images, std::ptrdiff_t count) {
  const std::ptrdiff_t kept = std::min(count, images.size());
  images.pixels.conservativeResize(kept, Eigen::NoChange);
  images.labels.resize(static_cast<std::size_t>(kept));
}

int study_routers(const options& o) {
  digits::dataset data = digits::read_dataset(o.data);
  shared::require_writable(o.svg);
  if (!o.csv.empty()) shared::require_writable(o.csv);
  amount how_much;
  if (o.quick) {
    how_much = {.epochs = 1, .samples = 100, .steps = 20, .paper_samples = 100, .paper_steps = 20};
    keep_first(data.train, 128);
    keep_first(data.test, 64);
  }

  results all;
  std::vector<job> jobs;
  for (const subject& s : all_subjects())
    if (o.routers.empty() || std::find(o.routers.begin(), o.routers.end(), s.name) != o.routers.end())
      all.routers.push_back({s, {}, {}});
  if (o.routers.empty()) add_paper_jobs(jobs, all.paper, o, how_much);
  for (outcome& r : all.routers) add_router_jobs(jobs, r, o, how_much, data);
  run(jobs, o);

  std::cout << "Digits: " << data.train.size() << " images to train, " << data.test.size() << " to test, "
            << how_much.epochs << (how_much.epochs == 1 ? " epoch. " : " epochs. ") << "Clusters: " << how_much.samples
            << " samples to train, as many to test, " << how_much.steps << " steps. Means over " << o.seeds
            << (o.seeds == 1 ? " seed.\n\n" : " seeds.\n\n");
  print_table(std::cout, all.routers);
  std::cout << "\n+-: standard deviation over the seeds. load CV: deviation of the experts' loads over their mean. no "
               "expert: tokens "
               "that none took.\nstill changes: tokens that had other experts after the last epoch than after the one "
               "before. "
               "entropy: of the clusters, given\nthe expert, in nats: 0 is an expert a cluster, 1.39 no order.\n";
  const std::vector<claim> claims = claims_about(all, target);
  if (!claims.empty()) std::cout << '\n';
  for (const claim& c : claims)
    std::cout << (c.holds ? "holds:         " : "does not hold: ") << c.what << ": " << c.measured << '\n';
  const std::string about =
      "digits: " + std::to_string(how_much.epochs) + " epochs of " + std::to_string(data.train.size()) +
      " images, 8 experts of width 64 · clusters: the task of \"Towards Understanding Mixture of Experts\", " +
      std::to_string(how_much.samples) + " samples · means over " + std::to_string(o.seeds) + " seeds";
  shared::write_file(o.svg, picture(all.routers, claims, about));
  if (!o.csv.empty()) shared::write_file(o.csv, csv(all.routers, o.seed));
  std::cout << "\nPicture: " << o.svg << '\n' << std::flush;
  return std::cout ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::vector<std::string> names;
    for (const subject& s : all_subjects()) names.push_back(s.name);
    const auto o = parse_options(argc, argv, names, std::cout);
    return o ? study_routers(*o) : EXIT_SUCCESS;
  } catch (const shared::input_error& e) {
    std::cerr << "router_study: " << e.what() << '\n';
    return 2;
  } catch (const std::exception& e) {
    std::cerr << "router_study: " << e.what() << '\n';
    return EXIT_FAILURE;
  }
}
