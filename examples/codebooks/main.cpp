/// Compresses vectors with every structure of codebooks, and searches among vectors by product codes.
///
///   codebooks compress                        the handwritten digits: a table and codebooks.svg
///   codebooks compress --input photo.ppm      squares of a picture; a CSV of vectors will do as well
///   codebooks search vectors.csv              an index, its recall and its speed;  --help says what else there is
#include <cstdlib>
#include <exception>
#include <iostream>
#include <mutex>
#include <string>
#include <vector>

#include "../shared/file.hpp"
#include "../shared/parallel_jobs.hpp"
#include "../shared/progress_line.hpp"
#include "options.hpp"
#include "picture.hpp"
#include "search.hpp"
#include "subjects.hpp"

namespace {

using namespace codebooks;

/// Trains all of them on some threads; what they give does not depend on how many there are.
void train_all(std::vector<outcome>& all, const split& data, const training& how, const compress_options& o) {
  const bool bar = !o.quiet && (o.bar || shared::stderr_is_terminal());
  shared::progress_line line(std::cerr, shared::stderr_width());
  std::mutex shown;
  std::vector<double> done(all.size(), 0);
  shared::run_jobs(all.size(), o.threads, [&](std::size_t i) {
    all[i].m = all[i].of.train(data, how, [&](double part) {
      const std::scoped_lock lock(shown);
      done[i] = part;
      double sum = 0;
      for (const double d : done) sum += d;
      if (bar) line.draw(sum / static_cast<double>(all.size()), all[i].of.name);
    });
    const std::scoped_lock lock(shown);
    if (!bar && !o.quiet) std::cerr << all[i].of.name << ": " << shared::percent(all[i].m.error, 1) << " lost\n";
  });
  line.wipe();
}

void print_table(std::ostream& out, const std::vector<outcome>& all) {
  using shared::fixed, shared::percent;
  std::vector<std::vector<std::string>> rows{
      {"", "quantiser", "bits", "lost", "perplexity", "codes", "in use", "dead", "revived", "vectors/s"}};
  for (std::size_t i = 0; i < all.size(); ++i) {
    const measured& m = all[i].m;
    rows.push_back({std::to_string(i + 1), all[i].of.name, fixed(m.bits, 1), percent(m.error, 1),
                    fixed(m.perplexity, 1), shared::grouped(m.codes), percent(m.used, 0), shared::grouped(m.dead),
                    shared::grouped(m.revived), shared::grouped(static_cast<std::int64_t>(m.vectors_per_second))});
  }
  shared::print_columns(out, rows, 1);
}

int compress(const compress_options& o) {
  vectors v = read_vectors(o.input, o.is_digits, o.patch);
  shared::require_writable(o.svg);
  training how{.seed = o.seed, .epochs = o.epochs};
  if (o.quick) {
    how.epochs = 1;
    v.rows.conservativeResize(std::min<index_t>(v.rows.rows(), 200), Eigen::NoChange);
  }
  const split data(v);
  std::vector<outcome> all;
  for (const subject& s : all_subjects())
    if (o.structures.empty() || std::find(o.structures.begin(), o.structures.end(), s.name) != o.structures.end())
      all.push_back({s, {}});
  train_all(all, data, how, o);
  const std::string about = std::to_string(data.train.rows()) + " vectors of " + std::to_string(data.train.cols()) +
                            " numbers to train, " + std::to_string(data.test.rows()) + " to test, " +
                            std::to_string(how.epochs) + (how.epochs == 1 ? " epoch" : " epochs");
  std::cout << about << "\n\n";
  print_table(std::cout, all);
  std::cout << "\nlost: share of the test vectors' variance. perplexity: codes that would be as busy, if all were "
               "equally so; it and in use are means over columns, of the training vectors.\ndead: codes that none of "
               "them chose. revived: moved by a repair, over training. vectors/s: encoding, one "
               "thread.\n";
  shared::write_file(o.svg, picture(all, data.shape, about));
  std::cout << "\nPicture: " << o.svg << '\n' << std::flush;
  return std::cout ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::vector<std::string> names;
    for (const subject& s : all_subjects()) names.push_back(s.name);
    const auto o = parse_options(argc, argv, names, std::cout);
    if (!o) return EXIT_SUCCESS;
    return o->searches ? search(o->search) : compress(o->compress);
  } catch (const shared::input_error& e) {
    std::cerr << "codebooks: " << e.what() << '\n';
    return 2;
  } catch (const std::exception& e) {
    std::cerr << "codebooks: " << e.what() << '\n';
    return EXIT_FAILURE;
  }
}
