#ifndef SLUICE_RUNTIME_SERVICE_TALLY_H_
#define SLUICE_RUNTIME_SERVICE_TALLY_H_
// What a server counts since it started, and its last ten minutes by the second.
#include <cstdint>
#include <deque>

#include "sluice/api/version.h"
#include "sluice/runtime/service/latency_histogram.h"

SLUICE_BEGIN_NAMESPACE
struct Tally {
  uint64_t decisions = 0;
  uint64_t feedbacks = 0;
  uint64_t duplicates = 0;
  uint64_t rejected = 0;
  uint64_t malformed = 0;
  uint64_t overloaded = 0;
  uint64_t rate_limited = 0;
  uint64_t undeliverable = 0;
  uint64_t refused = 0;
  uint64_t reloads = 0;
  uint64_t failed_reloads = 0;
  // Of outcomes: sums, and how many they are of. Quality is told by graded ones only.
  uint64_t graded = 0;
  uint64_t settled = 0;
  double quality = 0;
  double cost_usd = 0;
  LatencyHistogram decide;  // ns

  struct Second {
    int64_t unix_ms = 0;
    uint32_t decisions = 0;
    uint32_t feedbacks = 0;
    uint32_t graded = 0;
    uint32_t settled = 0;
    double quality = 0;
    double cost_usd = 0;
    double latency_s = 0;
  };
  static constexpr size_t kSeconds = 600;
  Second now;
  std::deque<Second> history;
  // Seconds without traffic are points too, so that a time axis is honest.
  void NextSecond(int64_t unix_ms) {
    now.unix_ms = unix_ms;
    history.push_back(now);
    now = {};
    if (history.size() > kSeconds) history.pop_front();
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_TALLY_H_
