/// Shows on stderr how far the training is: a bar that redraws itself in a terminal, else one line a finished router.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ostream>
#include <string>

#if defined(_WIN32)
#include <io.h>
#else
#include <sys/ioctl.h>
#include <unistd.h>
#endif

#include "table.hpp"

namespace digits {

enum class progress_style { none, lines, bar };

inline bool stderr_is_terminal() {
#if defined(_WIN32)
  return _isatty(_fileno(stderr)) != 0;
#else
  return isatty(STDERR_FILENO) != 0;
#endif
}

/// Characters in a line of the terminal behind stderr; 80 when that cannot be known.
inline int stderr_width() {
#if !defined(_WIN32)
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
#endif
  return 80;
}

/// One object for all trainings; finish() or the destructor wipes the bar, so that what is printed next starts on a
/// clean line.
class progress {
public:
  /// `epochs`: of all trainings together. `width`: characters that the bar may use in a line.
  progress(std::ostream& out, progress_style style, int epochs, int width = 80)
      : out_(out), style_(style), epochs_(std::max(epochs, 1)), width_(width), start_(clock::now()) {}
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;
  ~progress() { wipe(); }

  /// Names the training that follows.
  void begin(std::string training) {
    training_ = std::move(training);
    begin_ = clock::now();
  }

  /// After each epoch of it: `epoch` of `of`, with the mean loss and the share of correct training images.
  void epoch(int epoch, int of, double loss, double accuracy) {
    done_ = std::min(done_ + 1, epochs_);
    status_ = training_ + "  epoch " + std::to_string(epoch) + "/" + std::to_string(of) + "  loss " +
              detail::fixed(loss, 3) + "  accuracy " + detail::percent(accuracy, 1);
    const auto now = clock::now();
    // Ten pictures a second are enough for an eye, and drawing must not become part of the measured speed.
    if (style_ != progress_style::bar || (now - drawn_ < std::chrono::milliseconds(100) && epoch != of)) return;
    drawn_ = now;
    draw(seconds(now - start_));
  }

  /// After the last epoch of it, with its result on the test images.
  void finish(double test_accuracy) {
    if (style_ == progress_style::none) return;
    wipe();
    if (style_ == progress_style::lines)
      out_ << training_ << ": test accuracy " << detail::percent(test_accuracy, 2) << ", "
           << detail::fixed(seconds(clock::now() - begin_), 1) << " s\n"
           << std::flush;
  }

private:
  using clock = std::chrono::steady_clock;
  static double seconds(clock::duration d) { return std::chrono::duration<double>(d).count(); }

  void draw(double elapsed) {
    const double left = elapsed * (epochs_ - done_) / done_;
    const std::string tail = "  " + detail::fixed(left, 0) + " s left";
    constexpr int cells = 20;
    const int full = cells * done_ / epochs_;
    std::string line = "[" + std::string(static_cast<std::size_t>(full), '#') +
                       std::string(static_cast<std::size_t>(cells - full), '.') + "] " + status_;
    // A line that wraps cannot be wiped, so a narrow terminal loses the end of the status.
    const auto room = static_cast<std::size_t>(std::max(0, width_ - 1 - static_cast<int>(tail.size())));
    line = line.substr(0, room) + tail;
    line.resize(std::min(line.size(), static_cast<std::size_t>(std::max(width_ - 1, 0))));
    out_ << '\r' << line << (line.size() < drawn_size_ ? std::string(drawn_size_ - line.size(), ' ') : "")
         << std::flush;
    drawn_size_ = line.size();
  }

  void wipe() {
    if (drawn_size_ > 0) out_ << '\r' << std::string(drawn_size_, ' ') << '\r' << std::flush;
    drawn_size_ = 0;
  }

  std::ostream& out_;
  progress_style style_;
  int epochs_, done_ = 0, width_;
  clock::time_point start_, begin_ = start_, drawn_{};
  std::size_t drawn_size_ = 0;
  std::string training_, status_;
};

}  // namespace digits
