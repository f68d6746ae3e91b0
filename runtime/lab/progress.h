#ifndef SLUICE_RUNTIME_LAB_PROGRESS_H_
#define SLUICE_RUNTIME_LAB_PROGRESS_H_
// How far a long run is: to stderr, and only where a person reads it.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// Called with what is done of `total`; the last call clears the line.
inline std::function<void(int64_t)> Progress(const std::string& what, int64_t total) {
  const bool terminal = isatty(2) != 0;
  return [=](int64_t done) {
    if (!terminal) return;
    const int percent = static_cast<int>(100 * done / std::max<int64_t>(total, 1));
    std::fprintf(stderr, "\r%-44s %3d%%%s", what.c_str(), percent, done >= total ? "\r\033[K" : "");
  };
}
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PROGRESS_H_
