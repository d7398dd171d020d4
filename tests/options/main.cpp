#include "answers.hpp"

#include <cstdio>
#include <string_view>

answers plain(), no_exceptions(), with_openmp();

namespace {

bool as_expected(const char* options, const answers& a, bool openmp, bool exceptions) {
  std::printf("%s: %s, OpenMP %d of %d threads, pool %d tasks, throws %d\n", options, a.name, a.openmp_threads,
              a.openmp_concurrency, a.pool_runs, a.throws);
  const bool named = std::string_view(a.name).ends_with("_noexcept") != exceptions;
  return a.openmp_concurrency == (openmp ? 2 : 1) && a.openmp_threads == (openmp ? 2 : 1) && a.pool_runs == 100 &&
         a.throws == exceptions && named;
}

}  // namespace

int main() {
  bool right = as_expected("plain", plain(), false, true);
  right = as_expected("-fno-exceptions", no_exceptions(), false, false) && right;
#if defined(WITH_OPENMP)
  right = as_expected("-fopenmp", with_openmp(), true, true) && right;
#endif
  return right ? 0 : 1;
}
