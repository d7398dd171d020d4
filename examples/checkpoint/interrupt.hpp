/// Ctrl-C, and other signals that ask a program to end: the signal only sets a flag, and the program looks at it between
/// pieces of work, so that whatever it is writing is either finished or undone. A second one ends the program at once.
#pragma once

#include <csignal>
#include <exception>

namespace checkpoint {

class interrupted : public std::exception {
public:
  const char* what() const noexcept override { return "interrupted"; }
};

inline volatile std::sig_atomic_t interrupt_flag = 0;  // the number of the signal

inline void catch_interrupt(int number) {
  std::signal(number, [](int caught) {
    interrupt_flag = caught;
    std::signal(caught, SIG_DFL);
  });
}

inline void catch_interrupts() {
  catch_interrupt(SIGINT);
  catch_interrupt(SIGTERM);
#ifdef SIGHUP
  if (std::signal(SIGHUP, SIG_IGN) != SIG_IGN) catch_interrupt(SIGHUP);  // nohup has it ignored
#endif
#ifdef SIGXFSZ
  std::signal(SIGXFSZ, SIG_IGN);  // a file beyond the limit is an error of the write
#endif
}

inline void check_interrupt() {
  if (interrupt_flag != 0) throw interrupted();
}

}  // namespace checkpoint
