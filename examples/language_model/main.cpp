/// Trains small language models of bytes whose attention and feed-forward parts are mixtures of experts, or are not.
///
///   language_model train                                  learns the library's headers, then writes a little
///   language_model train --kind moa --text book.txt       another kind of model, any file
///   language_model resume language_model.safetensors      goes on after a stop, as if there had been none
///   language_model write language_model.safetensors --prompt "template <"
///   language_model compare                                all kinds: a table and language_model.svg
///
/// --help says what else there is.
#include <sluice/exec/thread_pool.hpp>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "../checkpoint/interrupt.hpp"
#include "description.hpp"
#include "kinds.hpp"
#include "options.hpp"
#include "picture.hpp"
#include "report.hpp"
#include "shared/file.hpp"
#include "shared/progress_line.hpp"
#include "train.hpp"
#include "writing.hpp"

namespace {

using namespace language_model;

transformer make_model(const description& d) {
  for (const kind& k : all_kinds())
    if (k.name == d.kind) return {d.size, k.make(d.size)};
  throw shared::input_error("there is no kind " + shared::in_quotes(d.kind));
}

/// What a training tells while it goes on.
class reporter {
public:
  explicit reporter(const running& r)
      : bar_(!r.quiet && (r.bar || shared::stderr_is_terminal())),
        lines_(!r.quiet && !bar_),
        line_(std::cerr, shared::stderr_width()) {}

  /// `before` and `of`: how many models were trained and are to be.
  void step(const training& t, const description& d, std::size_t before = 0, std::size_t of = 1) {
    const double part = static_cast<double>(t.step()) / static_cast<double>(d.how.steps);
    const auto status = [&] {
      return d.kind + ", step " + std::to_string(t.step()) + " of " + std::to_string(d.how.steps) + ": " +
             shared::fixed(static_cast<double>(t.curve().back()), 3) + " bits a byte";
    };
    if (bar_) line_.draw((static_cast<double>(before) + part) / static_cast<double>(of), status());
    if (lines_ && t.step() % std::max<index_t>(1, d.how.steps / 10) == 0) std::cerr << status() << '\n';
  }
  void wipe() { line_.wipe(); }

private:
  bool bar_, lines_;
  shared::progress_line line_;
};

int train(const train_options& o) {
  description what = o.what;
  if (o.resume) what = from_metadata(metadata_of(o.model), o.model);
  shared::require_writable(o.model);
  const corpus text = read_corpus(o.run.text, what.size.length);
  const auto about = to_metadata(what, text.training);
  training t(make_model(what), what.how);
  if (o.resume) {
    if (metadata_of(o.model) != about)
      throw shared::input_error(o.model + ": was trained on another text than " + o.run.text);
    t.load(o.model);
  }
  sluice::thread_pool threads(o.run.threads);
  {
    reporter shown(o.run);
    for (index_t steps = 1; !t.done(); ++steps) {
      t.advance(text.training, threads);
      shown.step(t, what);
      const bool stops = steps == o.stop_after || checkpoint::interrupt_flag != 0;
      if (stops || t.done() || t.step() % o.save_every == 0) t.save(o.model, about);
      if (stops && !t.done()) {
        shown.wipe();
        std::cerr << "stopped after step " << t.step() << "; go on by: language_model resume " << o.model << '\n';
        checkpoint::check_interrupt();
        return EXIT_SUCCESS;
      }
    }
  }
  std::cout << what.kind << ": " << shared::grouped(sluice::parameter_count(t.model())) << " parameters, "
            << shared::fixed(t.evaluate(text.validation, threads), 3) << " bits a byte of the validation text\n"
            << "Model: " << o.model << "\n\n"
            << continued(t.model(), "", what.size.length, {.bytes = 4 * what.size.length}, threads) << '\n'
            << std::flush;
  return std::cout ? EXIT_SUCCESS : EXIT_FAILURE;
}

int write(const write_options& o) {
  const auto what = from_metadata(metadata_of(o.model), o.model);
  training t(make_model(what), what.how);
  t.load(o.model);
  sluice::thread_pool threads(o.threads);
  std::cout << o.prompt << continued(t.model(), o.prompt, what.size.length, o.how, threads) << '\n' << std::flush;
  return std::cout ? EXIT_SUCCESS : EXIT_FAILURE;
}

int compare(const compare_options& o) {
  const corpus text = read_corpus(o.run.text, o.what.size.length);
  shared::require_writable(o.svg);
  if (!o.csv.empty()) shared::require_writable(o.csv);
  std::vector<outcome> all;
  for (const kind& k : all_kinds())
    if (o.kinds.empty() || std::find(o.kinds.begin(), o.kinds.end(), k.name) != o.kinds.end()) all.push_back({.of = k});
  sluice::thread_pool threads(o.run.threads);
  {
    reporter shown(o.run);
    for (std::size_t i = 0; i < all.size(); ++i) {
      description what = o.what;
      what.kind = all[i].of.name;
      training t(make_model(what), what.how);
      const auto start = std::chrono::steady_clock::now();
      while (!t.done()) {
        t.advance(text.training, threads);
        shown.step(t, what, i, all.size());
        checkpoint::check_interrupt();
      }
      all[i].seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      all[i].bits = t.evaluate(text.validation, threads);
      all[i].parameters = sluice::parameter_count(t.model());
      all[i].active = t.model().active();
      all[i].flops = all[i].active.flops(what.size.length);
      all[i].curve = t.curve();
    }
  }
  const index_t bytes_a_step = o.what.how.windows * o.what.size.length;
  const std::string about = std::to_string(o.what.how.steps) + " steps of " + std::to_string(o.what.how.windows) +
                            " windows of " + std::to_string(o.what.size.length) + " bytes, of " +
                            shared::grouped(static_cast<std::int64_t>(text.training.size())) + "; " +
                            std::to_string(o.what.size.depth) + " blocks of width " + std::to_string(o.what.size.width);
  std::cout << about << "\n\n";
  print_table(std::cout, all);
  std::cout
      << "\nbits/byte: of the validation text, which no model saw. active: parameters that a byte meets, those of "
         "the experts that it goes to among them.\nkFLOP/byte: forward, attention to half a window included. "
         "seconds: of training, with "
      << o.run.threads << (o.run.threads == 1 ? " thread.\n" : " threads.\n");
  shared::write_file(o.svg, picture(all, bytes_a_step, about));
  if (!o.csv.empty()) shared::write_file(o.csv, csv(all));
  std::cout << "\nPicture: " << o.svg << '\n' << std::flush;
  return std::cout ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  checkpoint::catch_interrupts();
  try {
    std::vector<std::string> names;
    for (const kind& k : all_kinds()) names.push_back(k.name);
    const auto o = parse_options(argc, argv, names, std::cout);
    if (!o) return EXIT_SUCCESS;
    switch (o->asked) {
      case command::train:
        return train(o->train);
      case command::write:
        return write(o->write);
      case command::compare:
        return compare(o->compare);
    }
  } catch (const checkpoint::interrupted& stop) {
    std::cerr << "language_model: " << stop.what() << '\n';
    return 130;
  } catch (const shared::input_error& e) {
    std::cerr << "language_model: " << e.what() << '\n';
    return 2;
  } catch (const std::exception& e) {
    std::cerr << "language_model: " << e.what() << '\n';
  }
  return EXIT_FAILURE;
}
