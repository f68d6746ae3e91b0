#ifndef SLUICE_RUNTIME_SERVICE_CLOCK_H_
#define SLUICE_RUNTIME_SERVICE_CLOCK_H_
// Two clocks: one that never goes back, for waits; one that every machine shares, for records.
#include <chrono>
#include <cstdint>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
inline double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
inline int64_t SteadyMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}
inline int64_t UnixMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_CLOCK_H_
