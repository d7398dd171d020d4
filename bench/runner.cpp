#include "runner.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include "team.hpp"

namespace bench {

namespace {

/// Keeps the seconds of every repetition by the name of its benchmark.
class collector : public benchmark::BenchmarkReporter {
public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs)
      if (run.run_type == Run::RT_Iteration)
        seconds_[run.run_name.function_name].push_back(run.real_accumulated_time / static_cast<double>(run.iterations));
  }

  const std::vector<double>& of(const std::string& name) { return seconds_[name]; }

private:
  std::map<std::string, std::vector<double>> seconds_;
};

/// Threads of whoever ran before spin for a while before they sleep, those of OpenMP for milliseconds, and on a machine with no
/// processor left over they would take the place of the next contestant's.
constexpr std::chrono::milliseconds rest{15};

double timed(const contestant& c, std::int64_t repetition) {
  c.prepare(repetition);
  std::this_thread::sleep_for(rest);
  const auto begin = steady_clock::now();
  c.call(repetition);
  return seconds_between(begin, steady_clock::now());
}

timing timing_of(std::vector<double> seconds) {
  if (seconds.empty()) return {};
  std::sort(seconds.begin(), seconds.end());
  const std::size_t half = seconds.size() / 2;
  const double median = seconds.size() % 2 == 1 ? seconds[half] : (seconds[half - 1] + seconds[half]) / 2;
  return {median, seconds.front(), static_cast<int>(seconds.size())};
}

}  // namespace

runner::runner(patience p) : patience_(p) {
  static bool initialized = false;
  if (initialized) return;
  initialized = true;
  char program[] = "sluice_bench", interleave[] = "--benchmark_enable_random_interleaving=true";
  char* arguments[] = {program, interleave, nullptr};
  int count = 2;
  benchmark::Initialize(&count, arguments);
}

double runner::trial(const contestant& c) const {
  const double first = timed(c, 0);
  return first > patience_.seconds ? first : std::min(first, timed(c, 1));
}

std::vector<timing> runner::race(const std::string& title, const std::vector<contestant>& contestants) const {
  collector times;
  const auto name_of = [&](const contestant& c) { return title + " " + c.name; };
  for (const contestant& c : contestants) {
    // The warm-up call also says how many repetitions there is time for.
    const auto begin = steady_clock::now();
    timed(c, 0);
    double once = seconds_between(begin, steady_clock::now());
    if (once < patience_.seconds) {
      const auto again = steady_clock::now();
      timed(c, 1);
      once = seconds_between(again, steady_clock::now());
    }
    const int repetitions = static_cast<int>(std::clamp(patience_.seconds / once, static_cast<double>(patience_.least),
                                                        static_cast<double>(patience_.most)));
    std::int64_t repetition = 2;
    const auto body = [&c, repetition](benchmark::State& state) mutable {
      for ([[maybe_unused]] auto _ : state) state.SetIterationTime(timed(c, repetition++));
    };
    benchmark::RegisterBenchmark(name_of(c).c_str(), body)->Iterations(1)->Repetitions(repetitions)->UseManualTime();
  }
  benchmark::RunSpecifiedBenchmarks(&times);
  benchmark::ClearRegisteredBenchmarks();
  std::vector<timing> found;
  for (const contestant& c : contestants) found.push_back(timing_of(times.of(name_of(c))));
  return found;
}

}  // namespace bench
