#ifndef SLUICE_RUNTIME_BASE_HASH_H_
#define SLUICE_RUNTIME_BASE_HASH_H_
#include <cstdint>

#include "absl/strings/string_view.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
// FNV-1a, then mixed. The same on every machine and version: ids and assignments on disk rest on
// it. Text may come in pieces.
class TextHash {
 public:
  void Add(absl::string_view s) {
    for (char c : s) h_ = (h_ ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  }
  uint64_t value() const { return RandomBits({h_, 0, 0, 0, 0}); }

 private:
  uint64_t h_ = 0xCBF29CE484222325u;
};
inline uint64_t HashText(absl::string_view s) {
  TextHash h;
  h.Add(s);
  return h.value();
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_BASE_HASH_H_
