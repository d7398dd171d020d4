/// Shows on stderr how far the training is: a bar that redraws itself in a terminal, else one line a finished router.
#pragma once

#include <algorithm>
#include <chrono>
#include <ostream>
#include <string>
#include <utility>

#include "shared.hpp"

namespace digits {

enum class progress_style { none, lines, bar };

/// One object for all trainings; finish() or the destructor wipes the bar.
class progress {
public:
  /// `epochs`: of all trainings together. `width`: characters that the bar may use in a line.
  progress(std::ostream& out, progress_style style, int epochs, int width = 80)
      : out_(out), style_(style), epochs_(std::max(epochs, 1)), bar_(out, width) {}

  /// Names the training that follows.
  void begin(std::string training) {
    training_ = std::move(training);
    begin_ = clock::now();
  }

  /// After each epoch of it: `epoch` of `of`, with the mean loss and the share of correct training images.
  void epoch(int epoch, int of, double loss, double accuracy) {
    done_ = std::min(done_ + 1, epochs_);
    if (style_ != progress_style::bar) return;
    const std::string status = training_ + "  epoch " + std::to_string(epoch) + "/" + std::to_string(of) + "  loss " +
                               fixed(loss, 3) + "  accuracy " + percent(accuracy, 1);
    bar_.draw(static_cast<double>(done_) / epochs_, status, epoch == of);
  }

  /// After the last epoch of it, with its result on the test images.
  void finish(double test_accuracy) {
    bar_.wipe();
    if (style_ != progress_style::lines) return;
    const std::chrono::duration<double> taken = clock::now() - begin_;
    out_ << training_ << ": test accuracy " << percent(test_accuracy, 2) << ", " << fixed(taken.count(), 1) << " s\n"
         << std::flush;
  }

private:
  using clock = std::chrono::steady_clock;

  std::ostream& out_;
  progress_style style_;
  int epochs_, done_ = 0;
  progress_line bar_;
  clock::time_point begin_ = clock::now();
  std::string training_;
};

}  // namespace digits
