#ifndef SLUICE_RUNTIME_BASE_HASH_H_
#define SLUICE_RUNTIME_BASE_HASH_H_
#include <cstdint>

#include "absl/strings/string_view.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
// FNV-1a, then mixed. The same on every machine and version: ids and assignments on disk rest on
// it.
inline uint64_t HashText(absl::string_view s) {
  uint64_t h = 0xCBF29CE484222325u;
  for (char c : s) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return RandomBits({h, 0, 0, 0, 0});
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_BASE_HASH_H_
