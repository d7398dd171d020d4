// k-means with scikit-learn's and faiss' rules for empty clusters.
#include "replays.hpp"

#include <sluice/codebook/kmeans.hpp>

namespace oracle {

namespace {

using namespace sluice;

template <typename Scalar>
void fit_as_scikit_learn(oracle_case<Scalar>& c) {
  const matrix<Scalar> x = c.rows("x");
  const auto weights = c.has("sample_weight") ? c.numbers("sample_weight") : std::vector<Scalar>{};
  kmeans<Scalar> clusters(c.template setting<index_t>("codes"), x.cols(),
                          {.rounds = c.template setting<index_t>("max_iter")});
  clusters.begin_at(c.rows("centroids"));
  const kmeans_report report = clusters.fit(x, {}, weights);
  const double inertia = clusters.label(x, {}, weights);
  c.check("centroids", matrix<Scalar>(clusters.table()));
  c.check("inertia", static_cast<Scalar>(inertia));
  c.check_integers("indices", clusters.ids());
  c.check_integers("iterations", std::vector{report.rounds});
}

/// A draw that makes codes split as the file says: faiss draws in proportion to the number of tokens but one.
template <typename Scalar>
double draw_of(const kmeans<Scalar, split_codes<Scalar>>& clusters, index_t donor) {
  double before = 0, own = 0, total = 0;
  for (index_t code = 0; code < clusters.codes(); ++code) {
    const auto chances = static_cast<double>(std::max<index_t>(clusters.sums().counts[code] - 1, 0));
    if (code < donor) before += chances;
    if (code == donor) own = chances;
    total += chances;
  }
  return (before + own / 2) / total;
}

template <typename Scalar>
void fit_as_faiss(oracle_case<Scalar>& c) {
  const matrix<Scalar> x = c.rows("x");
  const auto codes = c.template setting<index_t>("codes");
  const kmeans_options options{.rounds = c.template setting<index_t>("niter"),
                               .until_settled = false,
                               .spherical = c.template setting<bool>("spherical")};
  std::vector<double> draws(as_size(codes * options.rounds));
  random_source random(1);
  if (c.has("split_from")) {
    if (options.rounds != 1) throw unsupported("splits in more than one round");
    const auto donors = c.integers("split_from");
    kmeans<Scalar, split_codes<Scalar>> look(codes, x.cols(), {.rounds = 0});
    look.begin_at(c.rows("centroids"));
    look.learn(x);
    std::size_t next = 0;
    for (index_t code = 0; code < codes; ++code)
      if (look.sums().counts[code] == 0) draws[as_size(code)] = draw_of(look, donors.at(next++));
    if (next > 1) throw unsupported("more than one split");  // the second draws from what the first left
    random.replay(random_site("kmeans.split_codes"), draws);
  }
  kmeans<Scalar, split_codes<Scalar>> clusters(codes, x.cols(), options, split_codes<Scalar>(random));
  clusters.begin_at(c.rows("centroids"));
  clusters.fit(x);
  c.check("centroids", matrix<Scalar>(clusters.table()));
  clusters.label(x);
  c.check_integers("indices", clusters.ids());
}

template <typename Scalar>
void replay_kmeans(oracle_case<Scalar>& c) {
  const auto kind = c.template setting<std::string>("kind");
  if (kind == "kmeans_sklearn")
    fit_as_scikit_learn(c);
  else if (kind == "kmeans_faiss")
    fit_as_faiss(c);
  else
    throw unsupported("kind " + kind);
}

}  // namespace

std::vector<replayer> clusters() { return {{"kmeans", replay_kmeans<float>, replay_kmeans<double>}}; }

}  // namespace oracle
