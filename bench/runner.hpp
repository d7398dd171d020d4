/// Runs contestants against each other with Google Benchmark and returns their times.
///
/// A repetition is one call; repetitions of all contestants of a race are interleaved in random order, so that whatever else
/// happens on the machine meets all of them. Setting the scene (tokens, caches) is not timed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace bench {

struct contestant {
  std::string name;
  std::function<void(std::int64_t repetition)> prepare;  ///< not timed
  std::function<void(std::int64_t repetition)> call;     ///< timed
};

struct timing {
  double median = 0;  ///< seconds
  double fastest = 0;
  int repetitions = 0;
};

struct patience {
  double seconds = 0.4;  ///< for one contestant, preparation included
  int least = 3;         ///< repetitions
  int most = 25;
};

class runner {
public:
  explicit runner(patience p);

  /// One timing a contestant, in their order. `title` names the race.
  std::vector<timing> race(const std::string& title, const std::vector<contestant>& contestants) const;

  /// Seconds of a single call, after a first one that warms up. For choosing among variants.
  double trial(const contestant& c) const;

private:
  patience patience_;
};

}  // namespace bench
