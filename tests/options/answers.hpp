#pragma once

struct answers {
  int openmp_concurrency = 0;
  int openmp_threads = 0;
  int pool_runs = 0;
  bool throws = false;
  const char* name = "";
};
