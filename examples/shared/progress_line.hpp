/// A bar on stderr that redraws itself in one line and leaves nothing behind.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <ostream>
#include <string>

#if defined(_WIN32)
#include <io.h>
#else
#include <sys/ioctl.h>
#include <unistd.h>
#endif

#include "text.hpp"

namespace shared {

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

/// The destructor wipes the bar, so that what is printed next starts on a clean line.
class progress_line {
public:
  /// `width`: characters that the bar may use in a line.
  explicit progress_line(std::ostream& out, int width = 80) : out_(out), width_(width), start_(clock::now()) {}
  progress_line(const progress_line&) = delete;
  progress_line& operator=(const progress_line&) = delete;
  ~progress_line() { wipe(); }

  /// `done` is the finished part of the whole work, 0..1. Ten pictures a second are enough for an eye, and drawing must
  /// not become part of a measured speed: further ones are left out unless `always`.
  void draw(double done, const std::string& status, bool always = false) {
    const auto now = clock::now();
    if (!always && now - drawn_ < std::chrono::milliseconds(100)) return;
    drawn_ = now;
    const double elapsed = std::chrono::duration<double>(now - start_).count();
    const std::string tail = done > 0 ? "  " + fixed(elapsed * (1 - done) / done, 0) + " s left" : "";
    constexpr std::size_t cells = 20;
    const auto full = static_cast<std::size_t>(static_cast<double>(cells) * std::clamp(done, 0.0, 1.0));
    std::string line = "[" + std::string(full, '#') + std::string(cells - full, '.') + "] " + status;
    // A line that wraps cannot be wiped, so a narrow terminal loses the end of the status.
    const auto room = static_cast<std::size_t>(std::max(0, width_ - 1 - static_cast<int>(tail.size())));
    line = line.substr(0, room) + tail;
    line.resize(std::min(line.size(), static_cast<std::size_t>(std::max(width_ - 1, 0))));
    out_ << '\r' << line << (line.size() < size_ ? std::string(size_ - line.size(), ' ') : "") << std::flush;
    size_ = line.size();
  }

  void wipe() {
    if (size_ > 0) out_ << '\r' << std::string(size_, ' ') << '\r' << std::flush;
    size_ = 0;
  }

private:
  using clock = std::chrono::steady_clock;

  std::ostream& out_;
  int width_;
  clock::time_point start_, drawn_{};
  std::size_t size_ = 0;
};

}  // namespace shared
