// Any bytes: the reader must return a table that holds what it says, or an error.
#include <cstdlib>

#include "sluice/runtime/service/outcome_log.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto log = sluice::ParseOutcomeLog({reinterpret_cast<const char*>(data), size});
  if (!log.ok()) return 0;
  for (const sluice::OutcomeLog::Row& r : log->rows) {
    if (r.quality.size() != log->agents.size() || r.task < 0 ||
        r.task >= static_cast<int>(log->tasks.size()))
      std::abort();
    for (double q : r.quality) {
      if (q < 0 || q > 1) std::abort();
    }
  }
  (void)log->Graph(1);
  (void)log->Complete({.cost = true, .latency = true});
  return 0;
}
