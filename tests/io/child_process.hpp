/// Tests that need a second process, which only POSIX has.
#pragma once

#include "support.hpp"

#if defined(__unix__) || defined(__APPLE__)
#define SLUICE_TEST_HAS_FORK 1
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>
#else
#define SLUICE_TEST_HAS_FORK 0
#endif

#if SLUICE_TEST_HAS_FORK

#include <chrono>
#include <thread>

namespace sluice::test {

/// What body() returns in a process in which no file may grow beyond 8 KB: the limit stands in for a full disk.
template <typename Body>
int exit_code_on_full_disk(Body body) {
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{8192, 8192};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(2);
    try {
      ::_exit(body());
    } catch (...) {
      ::_exit(5);
    }
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

/// Runs body(), which does not return, in a process that is killed after that time.
template <typename Body>
void run_until_killed(std::chrono::microseconds after, Body body) {
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    try {
      body();
    } catch (...) {
    }
    ::_exit(2);
  }
  std::this_thread::sleep_for(after);
  REQUIRE(::kill(child, SIGKILL) == 0);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));  // it did not end by itself, by an exception
}

}  // namespace sluice::test

#endif
