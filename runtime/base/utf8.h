#ifndef SLUICE_RUNTIME_BASE_UTF8_H_
#define SLUICE_RUNTIME_BASE_UTF8_H_
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Whether bytes are UTF-8: shortest forms, no surrogates, nothing above U+10FFFF.
inline bool IsUtf8(absl::string_view text) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0};
  };
  for (size_t i = 0; i < text.size();) {
    const uint8_t lead = byte(i);
    const int length = lead < 0x80                    ? 1
                       : lead >= 0xC2 && lead <= 0xDF ? 2
                       : (lead & 0xF0) == 0xE0        ? 3
                       : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                      : 0;
    if (length == 0) return false;
    for (int k = 1; k < length; ++k) {
      if ((byte(i + static_cast<size_t>(k)) & 0xC0) != 0x80) return false;
    }
    const uint8_t second = byte(i + 1);
    if (lead == 0xE0 && second < 0xA0) return false;
    if (lead == 0xED && second > 0x9F) return false;
    if (lead == 0xF0 && second < 0x90) return false;
    if (lead == 0xF4 && second > 0x8F) return false;
    i += static_cast<size_t>(length);
  }
  return true;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_BASE_UTF8_H_
