#ifndef SLUICE_RUNTIME_SERVICE_TUNE_H_
#define SLUICE_RUNTIME_SERVICE_TUNE_H_
// Settings of agent policies by random search over replays: every policy gets the same number of
// trials, and is judged on other queries than it was tuned on.
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "sluice/runtime/service/replay.h"

SLUICE_BEGIN_NAMESPACE
// Half of a log's queries, by the hash of their ids: the same on every machine, whatever else the
// log holds.
enum class Half : uint8_t { kFirst, kSecond };
absl::StatusOr<OutcomeLog> HalfOf(const OutcomeLog& log, Half half);

// A policy's text may hold ranges, "thompson:prior=1..100": searched in equal steps of the
// logarithm, or of the number itself from 0. HasRanges: whether it does.
bool HasRanges(const std::string& policy);

struct TuneOptions {
  ReplayOptions replay;
  int64_t trials = 24;
  int seeds = 5;  // repetitions a trial, from `first_seed`
  uint64_t first_seed = 1;
  std::function<void(int64_t done)> progress;
};
struct Tuned {
  std::string policy;  // with a number for every range
  double utility = 0;  // of the last third, on the queries it was tuned on
};
// The best of so many settings. A text without ranges is judged as it is, once.
absl::StatusOr<Tuned> Tune(const OutcomeLog& log, const std::string& policy, const TuneOptions& o);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_TUNE_H_
