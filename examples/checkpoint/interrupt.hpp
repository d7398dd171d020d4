/// Ctrl-C: the signal only sets a flag, and the program looks at it between pieces of work, so that whatever it is
/// writing is either finished or undone. A second Ctrl-C ends the program at once.
#pragma once

#include <csignal>
#include <exception>

namespace checkpoint {

class interrupted : public std::exception {
public:
  const char* what() const noexcept override { return "interrupted"; }
};

inline volatile std::sig_atomic_t interrupt_flag = 0;

inline void catch_interrupts() {
  std::signal(SIGINT, [](int) {
    interrupt_flag = 1;
    std::signal(SIGINT, SIG_DFL);
  });
}

inline void check_interrupt() {
  if (interrupt_flag != 0) throw interrupted();
}

}  // namespace checkpoint
