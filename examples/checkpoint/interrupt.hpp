/// Ctrl-C, and other signals that ask a program to end: the signal only sets a flag, and the program looks at it between
/// pieces of work, so that whatever it is writing is either finished or undone. A second one ends the program at once.
#pragma once

#include <array>
#include <csignal>
#include <exception>

namespace checkpoint {

class interrupted : public std::exception {
public:
  const char* what() const noexcept override { return "interrupted"; }
};

inline volatile std::sig_atomic_t interrupt_flag = 0;  // the number of the signal

inline void catch_interrupts() {
#ifdef SIGHUP
  constexpr std::array ends{SIGINT, SIGTERM, SIGHUP};
#else
  constexpr std::array ends{SIGINT, SIGTERM};
#endif
  for (const int end : ends) {
    const auto before = std::signal(end, [](int number) {
      interrupt_flag = number;
      std::signal(number, SIG_DFL);
    });
    if (before == SIG_IGN) std::signal(end, SIG_IGN);  // nohup, and shells for what runs in the background
  }
#ifdef SIGXFSZ
  std::signal(SIGXFSZ, SIG_IGN);  // a file beyond the limit is an error of the write
#endif
}

inline void check_interrupt() {
  if (interrupt_flag != 0) throw interrupted();
}

}  // namespace checkpoint
